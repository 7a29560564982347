//! Decoded pictures, which are small: nothing else is held as a whole.

/// A picture in memory.
pub struct Pixels {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Bytes of a pixel: 3 (red, green, blue) or 4 (and opacity).
    pub channels: usize,
    /// Row by row from the top.
    pub bytes: Vec<u8>,
}
