//! The memory that answers of other servers hold together. Each answer has a bound of its own, but many large ones at
//! once would be too much; so what they hold is counted, and whoever comes when all is held is told to come again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all answers may hold together, in bytes.
pub(super) struct AnswerMemory {
    held: AtomicUsize,
    most: usize,
}

impl AnswerMemory {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), most })
    }
}

/// What one answer holds; given back when dropped. The default holds nothing.
#[derive(Default)]
pub struct HeldMemory {
    memory: Option<Arc<AnswerMemory>>,
    bytes: usize,
}

/// Answers up to this size are not counted: there are about as many as there are threads.
const UNCOUNTED_BYTES_MAX: usize = 64 << 10;
const ACCOUNT_STEP_BYTES: usize = 256 << 10;

impl HeldMemory {
    pub(super) fn nothing_of(memory: &Arc<AnswerMemory>) -> Self {
        Self { memory: Some(memory.clone()), bytes: 0 }
    }

    /// Accounts for an answer that has grown to so many bytes. False: there is no memory left for it.
    pub(super) fn grow_to(&mut self, bytes: usize) -> bool {
        let Some(memory) = &self.memory else { return true };
        let wanted =
            if bytes <= UNCOUNTED_BYTES_MAX { 0 } else { bytes.next_multiple_of(ACCOUNT_STEP_BYTES) };
        if wanted <= self.bytes {
            return true;
        }
        let more = wanted - self.bytes;
        if memory.held.fetch_add(more, Ordering::Relaxed) + more > memory.most {
            memory.held.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.bytes = wanted;
        true
    }
}

impl Drop for HeldMemory {
    fn drop(&mut self) {
        if let Some(memory) = &self.memory {
            memory.held.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_answers_share_a_bound_and_small_ones_are_not_counted() {
        let memory = AnswerMemory::new(4 * ACCOUNT_STEP_BYTES);
        let (mut large, mut other) = (HeldMemory::nothing_of(&memory), HeldMemory::nothing_of(&memory));
        assert!(
            large.grow_to(UNCOUNTED_BYTES_MAX)
                && large.grow_to(2 * ACCOUNT_STEP_BYTES + 1)
                && other.grow_to(ACCOUNT_STEP_BYTES)
        );
        assert!(!other.grow_to(ACCOUNT_STEP_BYTES + 1), "all is held");
        assert!(HeldMemory::nothing_of(&memory).grow_to(UNCOUNTED_BYTES_MAX));
        drop(large);
        assert!(other.grow_to(4 * ACCOUNT_STEP_BYTES));
        drop(other);
        assert_eq!(memory.held.load(Ordering::Relaxed), 0);
    }
}
