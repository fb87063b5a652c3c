//! The buffers that the connections of a worker lend each other: one is needed only while bytes are at hand.

use std::cell::Cell;

use bytes::BytesMut;

/// How much is read at once, in bytes: an answer of usual size with its head, or many events of a stream.
pub(super) const BLOCK: usize = 32 * 1024;

/// Less room than this is not worth a read.
const LEAST: usize = 4 * 1024;

/// A buffer for writing that grew beyond this is not kept.
const MAX_KEPT: usize = 32 * 1024;

/// The buffers of one worker. Whoever needs one takes it and gives it back before it waits, so a connection on which
/// nothing happens holds none.
#[derive(Default)]
pub(crate) struct Spare {
    read: Cell<BytesMut>,
    write: Cell<Vec<u8>>,
}

impl Spare {
    /// An empty buffer to read into, with room.
    pub(super) fn take_read(&self) -> BytesMut {
        let mut block = self.read.take();
        make_room(&mut block);
        block
    }

    /// Gives a buffer back; what is in it is forgotten.
    pub(super) fn give_read(&self, mut block: BytesMut) {
        block.clear();
        self.read.set(block);
    }

    /// An empty buffer to write from.
    pub(super) fn take_write(&self) -> Vec<u8> {
        self.write.take()
    }

    /// Gives a buffer back; what is in it is forgotten.
    pub(super) fn give_write(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= MAX_KEPT {
            buffer.clear();
            self.write.set(buffer);
        }
    }
}

/// Makes room for another read behind what `block` holds. Memory whose parts were all let go of is used again.
pub(super) fn make_room(block: &mut BytesMut) {
    let room = block.capacity() - block.len();
    let wanted = BLOCK.saturating_sub(block.len()).max(LEAST);
    if room < wanted && !block.try_reclaim(wanted) && room < LEAST {
        block.reserve(wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_once_nobody_holds_a_part_of_it() {
        let spare = Spare::default();
        let mut block = spare.take_read();
        let start = block.as_ptr();
        block.extend_from_slice(&[7; 5000]);
        let held = block.split_to(5000).freeze();
        spare.give_read(block);
        let block = spare.take_read();
        assert_ne!(block.as_ptr(), start, "a part of it is held");
        spare.give_read(block);
        drop(held);
        assert_eq!(spare.take_read().as_ptr(), start);
    }

    #[test]
    fn there_is_always_room() {
        let mut block = BytesMut::new();
        let mut held = Vec::new();
        for n in 0..200 {
            make_room(&mut block);
            assert!(block.capacity() - block.len() >= LEAST);
            block.extend_from_slice(&[1; 3000]);
            held.push(block.split_to(2000 + n).freeze());
        }
    }
}
