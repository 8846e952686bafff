//! Seeded simulations: whatever happens to the link, every call gets exactly one answer and nothing is left over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use darner_syslink::engine::CallId;
use darner_syslink::sim::{Faults, Pair, Side};
use darner_syslink::{
    Answering, CallError, Code, Config, Limits, Message, Peer, Refusal, Refuse, Reply, Service, Tag, Why,
};
use parking_lot::Mutex;

/// Answers at once, later, never, with a refusal, or after a call back, as the command says.
#[derive(Default)]
struct Moody {
    held: Mutex<Vec<(u64, Reply)>>,
}

const NOW: Tag = Tag(1);
const LATER: Tag = Tag(2);
const NEVER: Tag = Tag(3);
const NO: Tag = Tag(4);
const BACK: Tag = Tag(5);

impl Service for Moody {
    fn call(&self, _: &Peer, command: Message, reply: Reply) {
        let n = command.root().uint(Tag(1)).unwrap_or(0);
        match command.tag() {
            LATER => self.held.lock().push((n, reply)),
            NEVER => {}
            NO => reply.refuse(Refusal::new(Code::Failed, "no")),
            BACK => {
                let _ = reply.caller().call(message(NOW, n, 0), Some(Duration::from_millis(1)));
                reply.send(message(NOW, n, 0));
            }
            _ => reply.send(message(NOW, n, command.bulk().first().map_or(0, Vec::len))),
        }
    }
}

impl Moody {
    fn release(&self, rng: &mut fastrand::Rng) {
        let next = {
            let mut held = self.held.lock();
            if held.is_empty() { None } else { Some(rng.usize(..held.len())).map(|n| held.swap_remove(n)) }
        };
        if let Some((n, reply)) = next {
            reply.send(message(NOW, n, 0));
        }
    }
}

fn message(tag: Tag, n: u64, bulk: usize) -> Message {
    let mut m = Message::new(tag);
    m.uint(Tag(1), n);
    if bulk > 0 {
        m.attach(Tag(2), vec![n as u8; bulk]);
    }
    m
}

struct Run {
    pair: Pair,
    services: [Arc<Moody>; 2],
    /// What was asked, by side and call.
    asked: BTreeMap<(usize, CallId), (u64, Tag, usize)>,
    answered: usize,
    /// Whether bytes may change under way, as a hostile peer would have it: no answer can be believed then.
    damaged: bool,
}

impl Run {
    fn new(seed: u64, faults: Faults) -> Run {
        let services = [Arc::new(Moody::default()), Arc::new(Moody::default())];
        let limits = Limits { calls: 5, bytes: 3000, ..Limits::default() };
        let config = Config { limits, quiet_ns: Some(50_000_000), ..Config::default() };
        let damaged = faults.damage > 0;
        let pair = Pair::new(seed, faults, &config, services[0].clone(), services[1].clone());
        Run { pair, services, asked: BTreeMap::new(), answered: 0, damaged }
    }

    fn ask(&mut self, rng: &mut fastrand::Rng, n: u64) {
        let side = if rng.bool() { Side::A } else { Side::B };
        let tag = [NOW, NOW, LATER, LATER, NEVER, NO, BACK][rng.usize(..7)];
        let bulk = if rng.u8(..3) == 0 { rng.usize(1..2000) } else { 0 };
        let timeout = rng.bool().then(|| Duration::from_nanos(rng.u64(1..2_000_000)));
        match self.pair.start(side, message(tag, n, bulk), timeout) {
            Ok(call) => drop(self.asked.insert((side as usize, call), (n, tag, bulk))),
            Err(CallError::Busy | CallError::Broken(_)) => {}
            Err(e) => panic!("{e}"),
        }
    }

    fn collect(&mut self) {
        let (pair, answered, damaged) = (&self.pair, &mut self.answered, self.damaged);
        self.asked.retain(|(side, call), (n, tag, bulk)| {
            let side = [Side::A, Side::B][*side];
            let Some(answer) = pair.answer(side, *call) else { return true };
            *answered += 1;
            if let Some(m) = answer.ok().filter(|_| !damaged) {
                assert!(![NEVER, NO].contains(tag), "an answer where there is none");
                assert_eq!(m.root().uint(Tag(1)), Ok(*n), "the answer to another call");
                assert!(*tag != NOW || m.root().find(Tag(2)).is_none() == (*bulk == 0));
            }
            false
        });
    }

    fn random_steps(&mut self, rng: &mut fastrand::Rng) {
        for n in 0..rng.u64(20..120) {
            match rng.u8(..10) {
                0..=3 => self.ask(rng, n),
                4 => self.services[rng.usize(..2)].clone().release(rng),
                5 if !self.asked.is_empty() => {
                    let nth = rng.usize(..self.asked.len());
                    let (side, call) = *self.asked.keys().nth(nth).expect("there are more");
                    self.pair.cancel([Side::A, Side::B][side], call);
                }
                _ => drop(self.pair.step()),
            }
            self.collect();
        }
    }

    /// Lets everything come to its end.
    fn finish(&mut self, rng: &mut fastrand::Rng) {
        for _ in 0..1000 {
            for service in self.services.clone() {
                while !service.held.lock().is_empty() {
                    service.release(rng);
                }
            }
            if !self.pair.step() {
                break;
            }
        }
        self.collect();
    }
}

fn check(seed: u64, faults: Faults) -> u64 {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut run = Run::new(seed, faults.clone());
    run.random_steps(&mut rng);
    run.finish(&mut rng);
    let story = format!("seed {seed}, {faults:?}, closed {:?}", run.pair.closed(Side::A));
    assert!(run.asked.is_empty(), "{story}: without an answer: {:?}", run.asked);
    for side in [Side::A, Side::B] {
        assert_eq!(run.pair.pending(side), (0, 0), "{story}: {side:?} remembers something");
        assert!(run.answered == 0 || run.pair.is_open(side) || run.pair.closed(side).is_some(), "{story}");
    }
    run.pair.carried()
}

#[test]
fn every_call_has_one_answer_on_a_link_that_works() {
    let mut carried = 0;
    for seed in 0..2000 {
        carried += check(seed, Faults { delay_ns: 300_000, ..Faults::default() });
    }
    assert!(carried > 50_000, "the runs did too little: {carried}");
}

#[test]
fn every_call_has_one_answer_when_the_link_is_cut_at_any_message() {
    for seed in 0..40 {
        let length = check(seed, Faults { delay_ns: 300_000, ..Faults::default() });
        for cut_at in 0..length {
            check(seed, Faults { cut_at: Some(cut_at), delay_ns: 300_000, ..Faults::default() });
        }
    }
}

#[test]
fn every_call_has_one_answer_when_messages_come_twice() {
    for seed in 0..1000 {
        check(seed, Faults { double: 200, delay_ns: 300_000, ..Faults::default() });
    }
}

#[test]
fn every_call_has_one_answer_when_messages_are_lost_or_damaged() {
    for seed in 0..3000 {
        let (lose, damage) = if seed % 2 == 0 { (20, 0) } else { (0, 20) };
        check(seed, Faults { lose, damage, double: 20, delay_ns: 300_000, ..Faults::default() });
    }
}

fn numbers() -> Arc<dyn Service> {
    Arc::new(Answering(|_: &Peer, m: Message| Ok(message(NOW, m.root().uint(Tag(1))? + 1, 0))))
}

#[test]
fn the_same_seed_makes_the_same_run() {
    let run = |seed| {
        let faults = Faults { lose: 30, delay_ns: 1_000_000, ..Faults::default() };
        let pair = Pair::new(seed, faults, &Config::default(), Arc::new(Refuse), numbers());
        let caller = pair.caller(Side::A);
        let answers: Vec<_> = (0..50).map(|n| caller.call(message(NOW, n, 10), None)).collect();
        (answers, pair.now_ns(), pair.carried())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).1, run(2).1);
}

#[test]
fn a_caller_on_a_simulated_link_is_answered_inline() {
    let pair = Pair::perfect(Arc::new(Refuse), numbers());
    let answer = pair.caller(Side::A).call(message(NOW, 5, 0), None).unwrap();
    assert_eq!(answer.root().uint(Tag(1)), Ok(6));
    let refused = pair.caller(Side::B).call(message(NOW, 5, 0), None);
    assert!(matches!(refused, Err(CallError::Refused(no)) if no.code == Code::Unknown));
}

#[test]
fn a_reply_that_never_comes_ends_with_the_deadline_and_without_one_with_the_link() {
    let service = Arc::new(Moody::default());
    let pair = Pair::perfect(Arc::new(Refuse), service.clone());
    let caller = pair.caller(Side::A);
    assert_eq!(caller.call(message(LATER, 1, 0), Some(Duration::from_secs(1))), Err(CallError::TooLate));
    assert_eq!(pair.pending(Side::A), (1, 0), "its place is taken until the reply is in");
    service.release(&mut fastrand::Rng::with_seed(1));
    pair.settle();
    assert_eq!((pair.pending(Side::A), pair.counts(Side::A).late), ((0, 0), 1));
    let answer = caller.call(message(LATER, 2, 0), None);
    assert!(matches!(answer, Err(CallError::Broken(reason)) if reason.why == Why::Lost));
}
