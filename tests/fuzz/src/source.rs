//! Decisions from bytes: what the fuzzer changes is what a structured target does next. Where the bytes end, every
//! decision is the first one, so that each input is finite.

/// The bytes that were not used yet.
pub struct Source<'d>(&'d [u8]);

impl<'d> Source<'d> {
    pub fn new(data: &'d [u8]) -> Self {
        Self(data)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    /// A number below `bound`, which is at most 256.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound < 2 { 0 } else { usize::from(self.byte()) % bound }
    }

    /// True for so many of 256 values, of which 0 is none.
    pub fn chance(&mut self, of_256: u8) -> bool {
        self.byte() > 255 - of_256
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// One of the words of a text.
    pub fn word(&mut self, of: &'static str) -> &'static str {
        let at = self.below(of.split(' ').count());
        of.split(' ').nth(at).unwrap_or_default()
    }

    pub fn rest(&mut self) -> &'d [u8] {
        std::mem::take(&mut self.0)
    }
}
