use std::fs::File;
use std::os::fd::FromRawFd;

use super::*;

fn memory() -> File {
    // SAFETY: a valid C string; the descriptor is new and ours.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"ring".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(RING as u64).unwrap();
    file
}

fn ends() -> (Writer, Reader) {
    let file = memory();
    (open(&file, 0, true).unwrap().0, open(&file, 0, false).unwrap().1)
}

#[test]
fn what_is_put_in_comes_out_in_order_around_the_end_of_the_memory() {
    let (mut writer, mut reader) = ends();
    let mut random = fastrand::Rng::with_seed(7);
    let (mut sent, mut waiting) = (Vec::new(), std::collections::VecDeque::new());
    for n in 0..20_000u32 {
        let message = vec![n as u8; random.usize(HEADER..3000)];
        match writer.put(&message) {
            true => waiting.push_back(message.clone()),
            false => assert!(!waiting.is_empty(), "an empty ring has room"),
        }
        sent.push(message.len());
        for _ in 0..random.usize(..3) {
            assert_eq!(reader.take(4000).unwrap(), waiting.pop_front());
        }
    }
    while let Some(message) = waiting.pop_front() {
        assert_eq!(reader.take(4000).unwrap(), Some(message));
    }
    assert_eq!((reader.has(), reader.take(4000).unwrap()), (false, None));
    assert!(!writer.put(&vec![0; ROOM as usize]), "a message that never fits is not put in");
    assert!(writer.put(&vec![0; (ROOM - LEN) as usize]));
}

#[test]
fn a_reader_that_sleeps_is_to_be_woken_once_and_none_sleeps_over_a_message() {
    let (mut writer, mut reader) = ends();
    assert!(!writer.is_to_wake());
    assert!(reader.sleep());
    assert!(writer.put(&[1; HEADER]) && writer.is_to_wake() && !writer.is_to_wake());
    assert!(!reader.sleep());
    assert_eq!(reader.take(100).unwrap(), Some(vec![1; HEADER]));
    assert!(reader.sleep());
    reader.wake();
    assert!(!writer.is_to_wake());
}

#[test]
fn whatever_a_peer_writes_is_a_message_that_fits_or_the_end() {
    let (mut writer, mut reader) = ends();
    let mut random = fastrand::Rng::with_seed(1);
    let odd = [0, 1, 3, 4, 43, 44, 45, ROOM - 1, ROOM, ROOM + 1, 1 << 32, u64::MAX - 3, u64::MAX];
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..100_000 {
        let place = reader.read;
        match random.u8(..4) {
            0 => reader.lane.word(WRITTEN).store(place.wrapping_add(odd[random.usize(..odd.len())]), Ordering::Relaxed),
            1 => reader.lane.word(WRITTEN).store(random.u64(..), Ordering::Relaxed),
            2 => writer.lane.word(READ).store(random.u64(..), Ordering::Relaxed),
            _ => {
                let mut len = (odd[random.usize(..odd.len())] as u32).to_le_bytes();
                reader.lane.copy(place, len.as_mut_ptr(), 4, true);
                reader.lane.word(WRITTEN).store(place + random.u64(..ROOM * 2), Ordering::Relaxed);
            }
        }
        match reader.take(1000) {
            Ok(Some(message)) => {
                taken += 1;
                assert!((HEADER..=1000).contains(&message.len()));
            }
            Ok(None) => {}
            Err(reason) => {
                refused += 1;
                assert_eq!(reason.why, Why::Malformed);
            }
        }
        writer.put(&[0; 100]);
    }
    assert!(taken > 100 && refused > 100, "{taken} {refused}");
}
