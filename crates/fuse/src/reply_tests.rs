//! Replies as the kernel would read them, through a socket that keeps messages apart.

use std::os::{fd::AsRawFd, unix::net::UnixDatagram};

use super::*;

/// Answers request 7 of kind `opcode` and returns the message, `None` if none was sent.
fn message(opcode: u32, answer: impl FnOnce(Reply<'_>)) -> Option<Vec<u8>> {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let fd = Arc::new(OwnedFd::from(theirs));
    answer(Reply::new(&fd, 7, opcode));
    drop(fd);
    let mut buffer = vec![0; 1 << 16];
    // SAFETY: the buffer is ours for the call.
    let read = unsafe { libc::recv(ours.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    buffer.truncate(usize::try_from(read).ok()?);
    Some(buffer)
}

fn give_up(reply: Reply<'_>) {
    drop(reply);
}

fn header(len: u32, error: i32) -> Vec<u8> {
    OutHeader { len, error, unique: 7 }.as_bytes().to_vec()
}

#[test]
fn errors_travel_negative_and_alone() {
    assert_eq!(message(op::LOOKUP, |reply| reply.error(libc::ENOENT)).unwrap(), header(16, -libc::ENOENT));
    assert_eq!(message(op::UNLINK, |reply| reply.empty()).unwrap(), header(16, 0));
}

#[test]
fn fixed_bodies_have_the_kernels_sizes() {
    let sizes = |answer: fn(Reply<'_>)| message(op::LOOKUP, answer).unwrap().len();
    assert_eq!(sizes(|reply| reply.entry(&Entry::default())), 16 + 128);
    assert_eq!(sizes(|reply| reply.attr(&Attr::default(), Duration::ZERO)), 16 + 104);
    assert_eq!(sizes(|reply| reply.created(&Entry::default(), Opened::default())), 16 + 144);
    assert_eq!(sizes(|reply| reply.statfs(&Statfs::default())), 16 + 80);
    assert_eq!(sizes(|reply| reply.statx(&Statx::default(), Duration::ZERO)), 16 + 288);
}

#[test]
fn pieces_arrive_in_order_however_many() {
    for pieces in [0, 1, 15, 16, 1023, 1024, 3000] {
        let numbers: Vec<[u8; 2]> = (0..pieces as u16).map(u16::to_le_bytes).collect();
        let slices: Vec<_> = numbers.iter().map(|number| IoSlice::new(number)).collect();
        let got = message(op::READ, |reply| reply.data_pieces(&slices)).unwrap();
        assert_eq!(got[..16], header(16 + 2 * pieces as u32, 0), "{pieces} pieces");
        assert_eq!(got[16..], numbers.concat(), "{pieces} pieces");
    }
}

#[test]
fn the_old_copy_file_range_is_told_a_32_bit_count() {
    let old = message(op::COPY_FILE_RANGE, |reply| reply.copied(1 << 40)).unwrap();
    assert_eq!(old[16..], [255, 255, 255, 255, 0, 0, 0, 0]);
    let new = message(op::COPY_FILE_RANGE_64, |reply| reply.copied(1 << 40)).unwrap();
    assert_eq!(new[16..], (1u64 << 40).to_ne_bytes());
}

#[test]
fn forgets_are_never_answered_and_interrupts_seldom() {
    assert_eq!(message(op::FORGET, |reply| reply.empty()), None);
    assert_eq!(message(op::BATCH_FORGET, give_up), None);
    assert_eq!(message(op::INTERRUPT, give_up), None);
    assert!(message(op::INTERRUPT, |reply| reply.error(libc::EAGAIN)).is_some());
}

#[test]
fn a_dropped_reply_answers_eio_once() {
    assert_eq!(message(op::READ, give_up).unwrap(), header(16, -libc::EIO));
    assert_eq!(message(op::READ, |reply| drop(reply.defer())).unwrap(), header(16, -libc::EIO));
    assert_eq!(message(op::READ, |reply| reply.defer().answer(|reply| reply.empty())).unwrap(), header(16, 0));
    assert_eq!(message(op::READ, |reply| reply.defer().answer(give_up)).unwrap(), header(16, -libc::EIO));
}

#[test]
fn a_reply_dropped_by_a_panic_leaves_the_request_to_a_successor() {
    let quiet = std::panic::AssertUnwindSafe(|| {
        message(op::READ, |reply| {
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _reply = reply;
                std::panic::resume_unwind(Box::new(()));
            }));
            assert!(panicked.is_err());
        })
    });
    assert_eq!(quiet(), None);
}
