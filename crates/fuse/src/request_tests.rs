//! Requests made by hand, and bytes made by chance.

use zerocopy::IntoBytes;

use super::*;
use crate::{SetTime, Setattr};

const EXT: Dialect = Dialect { setxattr_ext: true };

/// A request's bytes: header and the parts of its body.
fn bytes(opcode: u32, unique: u64, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let len = (size_of::<InHeader>() + body.len()) as u32;
    let header = InHeader { len, opcode, unique, nodeid: 5, uid: 1, gid: 2, pid: 3, ..Default::default() };
    [header.as_bytes(), &body].concat()
}

/// Decodes a request and shows its operation.
fn shown(opcode: u32, body: &[&[u8]]) -> String {
    match Request::decode(&bytes(opcode, 7, body), EXT) {
        Ok(request) => format!("{:?}", request.op),
        Err(malformed) => malformed.what.to_string(),
    }
}

#[test]
fn the_header_is_taken_over_and_the_resend_bit_split_off() {
    let message = bytes(op::READLINK, 42 | abi::UNIQUE_RESEND, &[]);
    let request = Request::decode(&message, EXT).unwrap();
    assert_eq!((request.unique, request.resent, request.nodeid), (42, true, 5));
    assert_eq!((request.uid, request.gid, request.pid), (1, 2, 3));
    assert_eq!(request.raw_unique(), 42 | abi::UNIQUE_RESEND);
}

#[test]
fn names_end_at_their_nul() {
    assert_eq!(shown(op::LOOKUP, &[b"a\0"]), "Lookup { name: [97] }");
    assert_eq!(shown(op::SYMLINK, &[b"a\0b\0"]), "Symlink { name: [97], target: [98] }");
    let rename = abi::Rename2In { newdir: 9, flags: 1, padding: 0 };
    let expected = "Rename { name: [97], newdir: 9, newname: [98], flags: 1 }";
    assert_eq!(shown(op::RENAME2, &[rename.as_bytes(), b"a\0b\0"]), expected);
    assert_eq!(shown(op::RENAME, &[&9u64.to_ne_bytes(), b"a\0b\0"]), expected.replace("flags: 1", "flags: 0"));
    assert_eq!(shown(op::LOOKUP, &[b"a"]), "string without an end");
    assert_eq!(shown(op::LOOKUP, &[b"\0"]), "empty name");
}

#[test]
fn written_data_is_borrowed_and_its_length_checked() {
    let write = abi::WriteIn { fh: 1, offset: 2, size: 3, flags: 4, ..Default::default() };
    let message = bytes(op::WRITE, 7, &[write.as_bytes(), b"xyz"]);
    let Operation::Write { data, .. } = Request::decode(&message, EXT).unwrap().op else { panic!() };
    assert_eq!(data, b"xyz");
    assert_eq!(data.as_ptr(), message[80..].as_ptr());
    assert_eq!(shown(op::WRITE, &[write.as_bytes(), b"xy"]), "data cut short");
}

#[test]
fn setattr_says_what_it_sets_and_nothing_else() {
    use abi::fattr as f;
    let valid = f::SIZE | f::ATIME | f::MTIME | f::MTIME_NOW | f::KILL_SUIDGID;
    let wire = abi::SetattrIn { valid, size: 8, atime: -1i64 as u64, atimensec: 5, mode: 0o777, ..Default::default() };
    let message = bytes(op::SETATTR, 7, &[wire.as_bytes()]);
    let Operation::Setattr(set) = Request::decode(&message, EXT).unwrap().op else { panic!() };
    let atime = Some(SetTime::At(crate::Time { secs: -1, nsec: 5 }));
    let expected =
        Setattr { valid, size: Some(8), atime, mtime: Some(SetTime::Now), kill_suidgid: true, ..Default::default() };
    assert_eq!(set, expected);
}

#[test]
fn setxattr_is_read_in_the_negotiated_form() {
    let message = bytes(op::SETXATTR, 7, &[&2u32.to_ne_bytes(), &1u32.to_ne_bytes(), b"n\0vw"]);
    let op = Request::decode(&message, Dialect::default()).unwrap().op;
    assert_eq!(format!("{op:?}"), "Setxattr { name: [110], value: [118, 119], flags: 1, setxattr_flags: 0 }");
    let body: [&[u8]; 5] = [&2u32.to_ne_bytes(), &1u32.to_ne_bytes(), &1u32.to_ne_bytes(), &[0; 4], b"n\0vw"];
    let expected = "Setxattr { name: [110], value: [118, 119], flags: 1, setxattr_flags: 1 }";
    assert_eq!(shown(op::SETXATTR, &body), expected);
}

#[test]
fn forgets_come_in_pairs_and_expect_no_answer() {
    let pairs: [u64; 4] = [10, 1, 11, 2];
    let message = bytes(op::BATCH_FORGET, 7, &[&2u32.to_ne_bytes(), &[0; 4], pairs.as_bytes()]);
    let request = Request::decode(&message, EXT).unwrap();
    let Operation::BatchForget(forgets) = request.op else { panic!() };
    assert_eq!(forgets.collect::<Vec<_>>(), [(10, 1), (11, 2)]);
    assert!(!request.wants_reply());
    assert_eq!(shown(op::BATCH_FORGET, &[&u32::MAX.to_ne_bytes(), &[0; 4]]), "more forgets than a message can hold");
}

#[test]
fn init_is_read_with_and_without_its_upper_flags() {
    let short = abi::InitIn { major: 7, minor: 31, max_readahead: 9, flags: 1 };
    assert_eq!(shown(op::INIT, &[short.as_bytes()]), "Init { major: 7, minor: 31, max_readahead: 9, flags: 1 }");
    let long = abi::InitIn { flags: abi::init::INIT_EXT as u32, ..short };
    let ext = abi::InitInExt { flags2: 2, ..Default::default() };
    let expected =
        format!("Init {{ major: 7, minor: 31, max_readahead: 9, flags: {} }}", abi::init::INIT_EXT | 2 << 32);
    assert_eq!(shown(op::INIT, &[long.as_bytes(), ext.as_bytes()]), expected);
}

#[test]
fn extensions_are_cut_off() {
    let mut message = bytes(op::LOOKUP, 7, &[b"a\0", &[1; 8]]);
    message[36] = 1;
    let op = Request::decode(&message, EXT).unwrap().op;
    assert_eq!(format!("{op:?}"), "Lookup { name: [97] }");
    message[36] = 255;
    assert_eq!(Request::decode(&message, EXT).unwrap_err().what, "extensions longer than the message");
}

#[test]
fn malformed_bytes_say_whom_to_answer() {
    assert_eq!(Request::decode(&[0; 39], EXT).unwrap_err().unique, None);
    let message = bytes(op::OPEN, 7, &[&[0; 4]]);
    assert_eq!(Request::decode(&message, EXT).unwrap_err().unique, Some(7));
    assert_eq!(Request::decode(&message[..43], EXT).unwrap_err().unique, Some(7));
    assert_eq!(Request::decode(&bytes(op::FORGET, 7, &[]), EXT).unwrap_err().unique, None);
}

#[test]
fn unknown_operations_are_requests_too() {
    for opcode in [0, 7, 19, 48, 54, 4096, u32::MAX] {
        assert_eq!(shown(opcode, &[b"whatever"]), format!("Unknown({opcode})"));
    }
}

/// xorshift64*: the same bytes each time.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }
}

/// Touches all that a decoded request borrows.
fn walk(bytes: &[u8], dialect: Dialect) {
    if let Ok(request) = Request::decode(bytes, dialect) {
        let inside = |slice: &[u8]| bytes.as_ptr_range().contains(&slice.as_ptr()) || slice.is_empty();
        match request.op {
            Operation::BatchForget(forgets) => assert!(forgets.count() * 16 <= bytes.len()),
            Operation::Write { data, .. } => assert!(inside(data)),
            Operation::Lookup { name } => assert!(inside(name) && !name.contains(&0)),
            op => assert!(!format!("{op:?}").is_empty()),
        }
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let mut chance = Chance(0x5eed);
    for round in 0..200_000u32 {
        let len = (chance.next() % 120) as usize;
        let few_values = chance.next().is_multiple_of(2);
        let byte = |chance: &mut Chance| {
            if few_values { (chance.next() % 3) as u8 } else { chance.next() as u8 }
        };
        let body: Vec<u8> = (0..len).map(|_| byte(&mut chance)).collect();
        let mut message = bytes(round % 60, chance.next(), &[&body]);
        message[36] = if chance.next().is_multiple_of(4) { byte(&mut chance) } else { 0 };
        walk(&message, Dialect { setxattr_ext: round % 2 == 0 });
        // Truncated, with the header's length lying and telling the truth.
        let cut = (chance.next() as usize) % (message.len() + 1);
        walk(&message[..cut], EXT);
        if cut >= 4 {
            message[..4].copy_from_slice(&(cut as u32).to_ne_bytes());
            walk(&message[..cut], EXT);
        }
    }
}
