//! Everything that decodes bytes of a peer against bytes that no honest one sends: random ones, and valid ones with
//! some changed.

use crate::element::{Element, Tag};
use crate::engine::{Action, Config, Engine, Hello};
use crate::header::{HEADER, Head, Kind, Limits};
use crate::identity::Identity;
use crate::message::Message;
use crate::stream::Assembler;
use crate::{Ticket, error};

const ROUNDS: u64 = 50_000;

fn mangle(rng: &mut fastrand::Rng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.usize(1..4) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.usize(..bytes.len());
        match rng.u8(0..5) {
            0 => bytes[at] = rng.u8(..),
            1 => bytes[at] ^= 1 << rng.u8(0..8),
            2 => bytes[at] = [0, 0x7f, 0x80, 0xff][rng.usize(0..4)],
            3 => bytes.truncate(at),
            _ => bytes.insert(at, 0xff),
        }
    }
}

fn sample() -> Message {
    let mut m = Message::new(Tag(7));
    m.uint(Tag(1), 5).text(Tag(3), "ä").bytes(Tag(4), b"xyz").attach(Tag(5), vec![9; 10]);
    m.group(Tag(6), |g| {
        g.group(Tag(1), |g| drop(g.int(Tag(8), -8).text(Tag(9), "").clone()));
    });
    m
}

/// A whole message of kind `kind`.
fn sealed(kind: Kind, seq: u64, m: &Message) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend_from_slice(m.body());
    let bulks = m.bulk().iter().map(|b| b.len() as u32).collect();
    Head { bulks, ..Head::new(kind, seq) }.seal(&mut bytes);
    bytes
}

/// Repairs the length, so that it does not hide what is behind it.
fn repair(bytes: &mut [u8]) {
    if bytes.len() >= HEADER {
        let len = bytes.len() as u32;
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
    }
}

fn visit(e: &Element<'_>, budget: &mut u32) {
    *budget -= 1;
    let _ = (e.as_uint(), e.as_int(), e.as_text(), e.as_bytes(), e.as_bulk());
    let _ = (e.uint(Tag(1)), e.array::<4>(Tag(4)), e.number::<u8>(Tag(1)), e.group(Tag(6)), e.bulk(Tag(5)));
    e.children().for_each(|c| visit(&c, budget));
}

#[test]
fn what_passes_verification_is_read_within_the_limits_and_nothing_panics() {
    let mut rng = fastrand::Rng::with_seed(1);
    let limits = Limits { elements: 20, depth: 4, ..Limits::default() };
    let good = sealed(Kind::Command, 1, &sample());
    assert!(Head::parse(&good, &limits).is_ok());
    let mut passed = 0;
    for round in 0..ROUNDS {
        let mut bytes = good.clone();
        mangle(&mut rng, &mut bytes);
        if round % 10 == 0 {
            bytes.truncate(HEADER);
            bytes.extend((0..rng.usize(..80)).map(|_| rng.u8(..)));
        }
        if rng.u8(..8) > 0 {
            repair(&mut bytes);
        }
        let Ok(head) = Head::parse(&bytes, &limits) else { continue };
        passed += 1;
        bytes.truncate(head.end);
        if bytes.len() > HEADER {
            let m = Message::verified(bytes, head.bulks.iter().map(|_| Vec::new()).collect());
            visit(&m.root(), &mut 20);
            let _ = (m.buffer(Tag(5)), format!("{m:?}"), error::sentence_of(&m), Hello::read(&m));
        }
    }
    assert!(passed > ROUNDS / 20, "hardly anything came through: {passed}");
}

#[test]
fn no_message_makes_an_engine_panic_or_forget_an_answer() {
    let mut rng = fastrand::Rng::with_seed(2);
    for round in 0..ROUNDS / 5 {
        let mut engine = Engine::connect(Config::default(), Hello::default(), 0);
        let hello = sealed(Kind::Hello, 1, &Hello::default().message());
        let mut calls = Vec::new();
        for seq in 1..rng.u64(3..12) {
            let kind = [Kind::Command, Kind::Reply, Kind::Cancel, Kind::Bye, Kind::Ping, Kind::Hello][rng.usize(..6)];
            let mut bytes = if seq == 1 { hello.clone() } else { sealed(kind, seq, &sample()) };
            if kind == Kind::Reply && seq > 1 {
                bytes[16..24].copy_from_slice(&rng.u64(..5).to_le_bytes());
            }
            if rng.u8(..4) == 0 {
                mangle(&mut rng, &mut bytes);
                repair(&mut bytes);
            }
            if let Some(announced) = engine.announce(seq, bytes) {
                let bulk = announced.bulks().iter().map(|n| vec![0; *n as usize]).collect();
                engine.arrive(seq, announced, bulk);
            }
            calls.extend(engine.call(seq, sample(), Some(rng.u64(..20))));
        }
        engine.tick(30);
        engine.lost(error::Reason::new(error::Why::Lost, ""));
        while let Some(action) = engine.action() {
            if let Action::Answer(call, _) = action {
                let at = calls.iter().position(|c| *c == call).expect("one answer to each call");
                calls.swap_remove(at);
            }
        }
        assert!(calls.is_empty(), "round {round}: {calls:?} have no answer");
        assert_eq!(engine.pending(), (0, 0));
    }
}

#[test]
fn a_stream_in_pieces_of_any_size_gives_the_messages_that_were_put_in() {
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..500 {
        let messages: Vec<Vec<u8>> = (0..rng.u64(1..20)).map(|n| sealed(Kind::Command, n, &sample())).collect();
        let bytes = messages.concat();
        let (mut assembler, mut found, mut at) = (Assembler::default(), Vec::new(), 0);
        while at < bytes.len() {
            let n = rng.usize(1..200).min(bytes.len() - at);
            assembler.room(n)[..n].copy_from_slice(&bytes[at..at + n]);
            assembler.filled(n, 0);
            at += n;
            while let Some(m) = assembler.next(&Limits::default()).unwrap() {
                found.push(m);
            }
        }
        assert_eq!(found, messages);
        assert_eq!(assembler.since(), None);
    }
}

#[test]
fn no_bytes_make_an_assembler_an_identity_or_a_ticket_panic() {
    let mut rng = fastrand::Rng::with_seed(4);
    let good = sealed(Kind::Command, 1, &sample()).repeat(3);
    let key = Identity::generate().to_bytes().to_vec();
    for _ in 0..ROUNDS / 5 {
        let mut bytes = good.clone();
        mangle(&mut rng, &mut bytes);
        let mut assembler = Assembler::default();
        let n = bytes.len();
        assembler.room(n)[..n].copy_from_slice(&bytes);
        assembler.filled(n, 0);
        while let Ok(Some(_)) = assembler.next(&Limits::of_strangers()) {}
        let mut bytes = key.clone();
        mangle(&mut rng, &mut bytes);
        let _ = Identity::from_bytes(&bytes);
        let _ = String::from_utf8_lossy(&bytes).parse::<Ticket>();
    }
}
