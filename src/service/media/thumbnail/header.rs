//! What a file says of itself, read before anything is decoded: kind, size, how it is to be turned, whether it moves. Types that are
//! claimed elsewhere (`Content-Type`, names) do not count: a picture is what its first bytes say.

use std::io::{BufReader, Read, Seek, SeekFrom};

use super::exif::Orientation;
use super::{Source, ThumbnailError, vp8l};

/// Wider or higher than this no JPEG or GIF can be, and nothing else may be.
pub const SIDE_MAX: u32 = 65_535;
/// The largest that cameras of telephones make unasked have 50 million.
const PIXELS_MAX: u64 = 50 << 20;
/// A photograph of that many pixels without loss.
const FILE_BYTES_MAX: u64 = 128 << 20;
/// Segments of a JPEG or chunks of a PNG before the picture begins. Profiles and previews come in pieces of 64 KiB.
const PARTS_MAX: usize = 2_000;
/// Chunks of a WebP: each frame of an animation is one.
const WEBP_CHUNKS_MAX: usize = 20_000;
/// Blocks of a GIF up to its second frame, of which most have 255 bytes.
const GIF_BLOCKS_MAX: usize = 1 << 20;
/// Bytes of a JPEG between its segments, where none should be.
const JPEG_FILLING_BYTES_MAX: usize = 64 << 10;
/// Longer ones have no orientation worth having: a JPEG's cannot be.
const EXIF_BYTES_MAX: u64 = 64 << 10;

/// The kinds of file that we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Baseline, extended or progressive, 8 bits.
    Jpeg,
    /// Also APNG.
    Png,
    /// Either version.
    Gif,
    /// Lossy, lossless, animated.
    WebP,
}

impl Format {
    /// As it is served.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Gif => "image/gif",
            Self::WebP => "image/webp",
        }
    }
}

/// A picture that was looked at, and is within the bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Kind of file.
    pub format: Format,
    /// As it is stored, in pixels: 1 to 65 535.
    pub width: u32,
    /// The same.
    pub height: u32,
    /// How it is to be turned for display.
    pub orientation: Orientation,
}

impl Picture {
    /// Width and height as displayed.
    pub fn upright(&self) -> (u32, u32) {
        if self.orientation.swaps_sides() { (self.height, self.width) } else { (self.width, self.height) }
    }

    /// How many pixels it has.
    pub fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

pub(super) type File<'f> = BufReader<&'f mut dyn Source>;

/// From the beginning, in pieces small enough for a head to cost little.
fn begin(file: &mut dyn Source) -> Result<File<'_>, ThumbnailError> {
    file.rewind().map_err(ThumbnailError::broken)?;
    Ok(BufReader::with_capacity(4 << 10, file))
}

/// Reads the head.
pub fn look(file: &mut dyn Source) -> Result<Picture, ThumbnailError> {
    let length = file.seek(SeekFrom::End(0)).map_err(ThumbnailError::broken)?;
    let mut file = begin(file)?;
    let mut magic = [0; 12];
    let got = read_up_to(&mut file, &mut magic)?;
    let picture = match &magic[..got] {
        [0xff, 0xd8, 0xff, ..] => jpeg(&mut file)?,
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => png(&mut file)?.0,
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', w0, w1, h0, h1, ..] => {
            let side = |low: u8, high: u8| u32::from(u16::from_le_bytes([low, high]));
            upright(Format::Gif, side(*w0, *w1), side(*h0, *h1))
        }
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => webp(&mut file)?.0,
        _ => return Err(ThumbnailError::Unsupported),
    };
    if picture.width == 0 || picture.height == 0 {
        return Err(ThumbnailError::broken("it has no pixels"));
    }
    let too_large = picture.width.max(picture.height) > SIDE_MAX || picture.pixels() > PIXELS_MAX;
    if too_large || length > FILE_BYTES_MAX {
        return Err(ThumbnailError::TooLarge);
    }
    Ok(picture)
}

/// Whether there is a second frame, or one is announced.
pub fn is_animated(file: &mut dyn Source, picture: &Picture) -> Result<bool, ThumbnailError> {
    let mut file = begin(file)?;
    match picture.format {
        Format::Jpeg => Ok(false),
        Format::Png => png(&mut file).map(|(_, frames)| frames > 1),
        Format::WebP => webp(&mut file).map(|(_, moves)| moves),
        Format::Gif => gif_has_second_frame(&mut file),
    }
}

fn upright(format: Format, width: u32, height: u32) -> Picture {
    Picture { format, width, height, orientation: Orientation::default() }
}

/// The frame header of a JPEG, and the Exif block if it comes before. (ISO 10918-1, B.2.)
fn jpeg(file: &mut File<'_>) -> Result<Picture, ThumbnailError> {
    file.seek(SeekFrom::Start(2)).map_err(ThumbnailError::broken)?;
    let mut orientation = Orientation::default();
    let mut filling = JPEG_FILLING_BYTES_MAX;
    for _ in 0..PARTS_MAX {
        let marker = next_marker(file, &mut filling)?;
        match marker {
            // Without a length of their own.
            0x01 | 0xd0..=0xd8 => continue,
            0xd9 | 0xda => return Err(ThumbnailError::broken("no frame header before its data")),
            _ => {}
        }
        let length = u64::from(u16_be(file)?);
        let length =
            length.checked_sub(2).ok_or_else(|| ThumbnailError::broken("a segment without length"))?;
        match marker {
            // Others than Exif share this number, and may be many.
            0xe1 if length >= 6 => {
                let name: [u8; 6] = array(file)?;
                if &name == b"Exif\0\0" {
                    orientation = Orientation::from_exif(&bytes(file, length - 6)?);
                } else {
                    skip(file, length - 6)?;
                }
            }
            0xc0..=0xc2 => {
                skip(file, 1)?;
                let (height, width) = (u32::from(u16_be(file)?), u32::from(u16_be(file)?));
                return Ok(Picture { format: Format::Jpeg, width, height, orientation });
            }
            // Huffman tables; what JPEG extensions use (0xc8); conditions of arithmetic coding.
            0xc4 | 0xc8 | 0xcc => skip(file, length)?,
            // Lossless, hierarchical, arithmetic: nobody sends these.
            0xc3..=0xcf => return Err(ThumbnailError::Unsupported),
            _ => skip(file, length)?,
        }
    }
    Err(ThumbnailError::broken("no frame header among its segments"))
}

/// The next byte that follows 0xff and is neither zero nor another 0xff. Of others so many may come before it.
fn next_marker(file: &mut File<'_>, filling: &mut usize) -> Result<u8, ThumbnailError> {
    let mut after_ff = false;
    loop {
        *filling =
            filling.checked_sub(1).ok_or_else(|| ThumbnailError::broken("bytes between its segments"))?;
        match u8_of(file)? {
            0xff => after_ff = true,
            0 => after_ff = false,
            marker if after_ff => return Ok(marker),
            _ => {}
        }
    }
}

/// The chunks of a PNG up to its data; and how many frames it announces. (PNG, 5.6; 11.3.)
fn png(file: &mut File<'_>) -> Result<(Picture, u32), ThumbnailError> {
    file.seek(SeekFrom::Start(8)).map_err(ThumbnailError::broken)?;
    let (mut found, mut frames) = (None, 1);
    for _ in 0..PARTS_MAX {
        let length = u64::from(u32_be(file)?);
        let mut kind = [0; 4];
        file.read_exact(&mut kind).map_err(ThumbnailError::broken)?;
        let mut left = length;
        match &kind {
            b"IHDR" => {
                let (width, height) = (u32_be(file)?, u32_be(file)?);
                left = length.saturating_sub(8);
                found = Some(upright(Format::Png, width, height));
            }
            b"acTL" => {
                frames = u32_be(file)?;
                left = length.saturating_sub(4);
            }
            b"eXIf" if length <= EXIF_BYTES_MAX => {
                let exif = bytes(file, length)?;
                left = 0;
                if let Some(picture) = &mut found {
                    picture.orientation = Orientation::from_exif(&exif);
                }
            }
            b"IDAT" | b"IEND" => break,
            _ => {}
        }
        skip(file, left + 4)?;
    }
    found.map(|picture| (picture, frames)).ok_or_else(|| ThumbnailError::broken("no header"))
}

/// The chunks of a WebP; and whether it is marked as one that moves. Each of the pictures in it that might be decoded is held against
/// the canvas, since the decoder makes room for what a picture says of itself. (RFC 9649, 2.)
fn webp(file: &mut File<'_>) -> Result<(Picture, bool), ThumbnailError> {
    file.seek(SeekFrom::Start(12)).map_err(ThumbnailError::broken)?;
    let (mut found, mut moves) = (None::<Picture>, false);
    // The decoder takes the first of each kind; to look into all of them would be work without end.
    let mut seen = Vec::new();
    for chunks in 0.. {
        if chunks == WEBP_CHUNKS_MAX {
            return Err(ThumbnailError::TooLarge);
        }
        let mut kind = [0; 4];
        if read_up_to(file, &mut kind)? < 4 {
            break;
        }
        let length = u64::from(u32_le(file)?);
        let begins = file.stream_position().map_err(ThumbnailError::broken)?;
        let first = !seen.contains(&kind);
        match &kind {
            b"VP8X" if first => {
                moves = u8_of(file)? & 2 != 0;
                skip(file, 3)?;
                let (width, height) = (1 + u24_le(file)?, 1 + u24_le(file)?);
                within_pixels(width, height)?;
                found.get_or_insert_with(|| upright(Format::WebP, width, height));
            }
            b"VP8 " | b"VP8L" if first => {
                let (width, height) = webp_frame(file, &kind, length)?;
                let canvas = found.get_or_insert_with(|| upright(Format::WebP, width, height));
                if (width, height) != (canvas.width, canvas.height) {
                    return Err(ThumbnailError::broken("a picture of another size than its canvas"));
                }
            }
            b"ALPH" if first => {
                if let Some(canvas) = &found {
                    webp_alpha(file, length, canvas.width, canvas.height)?;
                }
            }
            b"ANMF" if first => webp_first_frame(file)?,
            b"EXIF" if length <= EXIF_BYTES_MAX => {
                let exif = bytes(file, length)?;
                if let Some(picture) = &mut found {
                    picture.orientation = Orientation::from_exif(&exif);
                }
            }
            _ => {}
        }
        if matches!(&kind, b"VP8X" | b"VP8 " | b"VP8L" | b"ALPH" | b"ANMF") && first {
            seen.push(kind);
        }
        let next = begins + length + (length & 1);
        let at = file.stream_position().map_err(ThumbnailError::broken)?;
        match next.checked_sub(at) {
            Some(left) => skip(file, left)?,
            None => drop(file.seek(SeekFrom::Start(next)).map_err(ThumbnailError::broken)?),
        }
    }
    found.map(|picture| (picture, moves)).ok_or_else(|| ThumbnailError::broken("no picture in it"))
}

/// A frame of an animation: its sizes, and then the data of a picture, perhaps behind that of its opacity.
fn webp_first_frame(file: &mut File<'_>) -> Result<(), ThumbnailError> {
    skip(file, 6)?;
    let (width, height) = (1 + u24_le(file)?, 1 + u24_le(file)?);
    within_pixels(width, height)?;
    skip(file, 4)?;
    let (mut kind, mut length) = (array(file)?, u64::from(u32_le(file)?));
    if &kind == b"ALPH" {
        let begins = file.stream_position().map_err(ThumbnailError::broken)?;
        webp_alpha(file, length, width, height)?;
        file.seek(SeekFrom::Start(begins + length + (length & 1))).map_err(ThumbnailError::broken)?;
        (kind, length) = (array(file)?, u64::from(u32_le(file)?));
        if &kind != b"VP8 " {
            return Err(ThumbnailError::broken("opacity without a picture"));
        }
    }
    if webp_frame(file, &kind, length)? != (width, height) {
        return Err(ThumbnailError::broken("a picture of another size than its frame"));
    }
    Ok(())
}

/// The size that the data of a picture itself has.
fn webp_frame(file: &mut File<'_>, kind: &[u8; 4], length: u64) -> Result<(u32, u32), ThumbnailError> {
    if kind == b"VP8 " {
        skip(file, 6)?;
        let side = |bits: u16| u32::from(bits & 0x3fff);
        return Ok((side(u16_le(file)?), side(u16_le(file)?)));
    }
    let signature = u8_of(file)?;
    let bits = u32_le(file)?;
    if signature != 0x2f {
        return Err(ThumbnailError::broken("no lossless data where it should be"));
    }
    let (width, height) = (1 + (bits & 0x3fff), 1 + (bits >> 14 & 0x3fff));
    within_pixels(width, height)?;
    vp8l::check(&mut file.take(length.saturating_sub(5)), width, height)?;
    Ok((width, height))
}

/// An opacity may be compressed like a picture.
fn webp_alpha(file: &mut File<'_>, length: u64, width: u32, height: u32) -> Result<(), ThumbnailError> {
    if u8_of(file)? & 3 == 1 {
        vp8l::check(&mut file.take(length.saturating_sub(1)), width, height)?;
    }
    Ok(())
}

fn within_pixels(width: u32, height: u32) -> Result<(), ThumbnailError> {
    let too_large = u64::from(width) * u64::from(height) > PIXELS_MAX || width.max(height) > SIDE_MAX;
    if too_large { Err(ThumbnailError::TooLarge) } else { Ok(()) }
}

/// Walks the blocks of a GIF, from its beginning. (GIF89a, 12 and 18 to 27.)
fn gif_has_second_frame(file: &mut File<'_>) -> Result<bool, ThumbnailError> {
    skip(file, 10)?;
    let flags = u8_of(file)?;
    skip(file, 2 + gif_table(flags))?;
    let (mut frames, mut blocks) = (0, 0);
    loop {
        // Browsers show what there is of a file that was cut off.
        let Ok(kind) = u8_of(file) else { return Ok(false) };
        match kind {
            0x21 => skip(file, 1)?,
            0x2c => {
                frames += 1;
                if frames == 2 {
                    return Ok(true);
                }
                skip(file, 8)?;
                let flags = u8_of(file)?;
                skip(file, gif_table(flags) + 1)?;
            }
            _ => return Ok(false),
        }
        loop {
            blocks += 1;
            if blocks > GIF_BLOCKS_MAX {
                return Err(ThumbnailError::TooLarge);
            }
            match u8_of(file) {
                Ok(0) => break,
                Ok(length) => skip(file, u64::from(length))?,
                Err(_) => return Ok(false),
            }
        }
    }
}

/// Bytes of a table of colours, if the flags announce one.
fn gif_table(flags: u8) -> u64 {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> Result<usize, ThumbnailError> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..]).map_err(ThumbnailError::broken)? {
            0 => break,
            n => got += n,
        }
    }
    Ok(got)
}

fn bytes(file: &mut File<'_>, length: u64) -> Result<Vec<u8>, ThumbnailError> {
    let mut bytes = vec![0; length as usize];
    file.read_exact(&mut bytes).map_err(ThumbnailError::broken)?;
    Ok(bytes)
}

fn skip(file: &mut File<'_>, length: u64) -> Result<(), ThumbnailError> {
    let length = i64::try_from(length).map_err(ThumbnailError::broken)?;
    file.seek_relative(length).map_err(ThumbnailError::broken)
}

fn array<const N: usize>(file: &mut File<'_>) -> Result<[u8; N], ThumbnailError> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes).map_err(ThumbnailError::broken)?;
    Ok(bytes)
}

fn u8_of(file: &mut File<'_>) -> Result<u8, ThumbnailError> {
    array::<1>(file).map(|[byte]| byte)
}

fn u16_be(file: &mut File<'_>) -> Result<u16, ThumbnailError> {
    array(file).map(u16::from_be_bytes)
}

fn u16_le(file: &mut File<'_>) -> Result<u16, ThumbnailError> {
    array(file).map(u16::from_le_bytes)
}

fn u24_le(file: &mut File<'_>) -> Result<u32, ThumbnailError> {
    array::<3>(file).map(|[a, b, c]| u32::from_le_bytes([a, b, c, 0]))
}

fn u32_be(file: &mut File<'_>) -> Result<u32, ThumbnailError> {
    array(file).map(u32::from_be_bytes)
}

fn u32_le(file: &mut File<'_>) -> Result<u32, ThumbnailError> {
    array(file).map(u32::from_le_bytes)
}
