//! Thumbnails (client-server API, "Thumbnails"): a picture's bytes in, a smaller picture's bytes out. No database, no clock and no network
//! here, so that it can be held against anything in a test.
//!
//! - `header`: what a file says of itself before anything is decoded, and what decoding it would cost.
//! - `size`: which of the few sizes that are made answers a request. - `exif`: how a picture is to be turned.
//! - `decode`: the formats, each a row at a time where its crate allows; `vp8l`: what lossless WebP would have it keep.
//! - `resize`: rows in, mean values out, in memory bounded by the size of the thumbnail, whose `pixels` they become.
//! - `encode`: the result as PNG where something shines through, else as JPEG, without any metadata.
//!
//! The pictures come from strangers. What decoding may take is bounded by the header (pixels, memory, passes over the
//! picture), by the length of the file and by a deadline; a panic of a decoder is an error like any other.

mod decode;
mod encode;
mod exif;
mod header;
mod pixels;
mod resize;
mod size;
#[cfg(test)]
mod tests;
mod vp8l;

use std::io::{Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

pub use header::{Format, Picture};
pub use size::{Method, ThumbnailRequest, ThumbnailSize};

/// Why there is no thumbnail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ThumbnailError {
    /// No picture of a kind that we read.
    Unsupported,
    /// More pixels, bytes or memory than we give one.
    TooLarge,
    /// It took longer than it may, which is perhaps not its fault.
    TooSlow,
    /// It begins like a picture and is none. For the log.
    Broken(String),
}

impl ThumbnailError {
    fn broken(why: impl ToString) -> Self {
        Self::Broken(why.to_string())
    }
}

/// What can be read from: a file.
pub trait Source: Read + Seek {}

impl<T: Read + Seek> Source for T {}

/// A thumbnail that was made.
#[derive(Debug)]
pub struct MadeThumbnail {
    /// The file.
    pub bytes: Vec<u8>,
    /// `image/png` or `image/jpeg`.
    pub content_type: &'static str,
    /// In pixels, as it is displayed.
    pub width: u32,
    /// The same.
    pub height: u32,
}

/// What a picture says of itself. Reads a few kilobytes at most, wherever in the file they are.
pub fn look(file: &mut dyn Source) -> Result<Picture, ThumbnailError> {
    shielded(|| header::look(file))
}

/// Whether a file moves: reads as far as its second frame, without decoding any.
pub fn is_animated(file: &mut dyn Source, picture: &Picture) -> Result<bool, ThumbnailError> {
    shielded(|| header::is_animated(file, picture))
}

/// The thumbnail of this size: a still picture, displayed upright. Gives up at the deadline.
pub fn make(
    file: &mut dyn Source,
    picture: &Picture,
    size: ThumbnailSize,
    deadline: Instant,
) -> Result<MadeThumbnail, ThumbnailError> {
    shielded(|| {
        let plan = size.plan(picture);
        let pixels = decode::decode(file, picture, &plan, deadline)?;
        let upright = picture.orientation.apply(pixels);
        encode::encode(upright)
    })
}

/// The decoders are other people's; should one of them panic over a file, then that file has no thumbnail.
fn shielded<T>(work: impl FnOnce() -> Result<T, ThumbnailError>) -> Result<T, ThumbnailError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(ThumbnailError::broken("the decoder panicked, which it should not")))
}
