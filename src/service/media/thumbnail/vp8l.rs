//! What lossless WebP data will have its decoder keep, found out before it is decoded. Each block of such a picture chooses one of up to
//! 65 536 sets of Huffman codes, a set takes a few bytes of the file and up to a hundred kilobytes of memory, and the decoder
//! makes them all: three megabytes of file would be a gigabyte. So the picture of the choices is read here, and nothing else is.
//! (RFC 9649, 3.)

use std::io::Read;

use super::ThumbnailError;

/// Sets of Huffman codes. libwebp's own decoder thinks twice about more than a thousand; its encoder stays far below.
const GROUPS_MAX: u32 = 1_000;
const CODE_LENGTHS: usize = 19;
const CODE_LENGTH_ORDER: [usize; CODE_LENGTHS] =
    [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const LONGEST_CODE: usize = 15;
/// Distances that mean a neighbour in two dimensions.
const NEIGHBOURS: usize = 120;

/// The neighbours, nearest first: so far to the left, so far above. (RFC 9649, 5.2.2.)
#[rustfmt::skip]
const DISTANCES: [(i8, u8); NEIGHBOURS] = [
    (0, 1), (1, 0), (1, 1), (-1, 1), (0, 2), (2, 0), (1, 2), (-1, 2), (2, 1), (-2, 1), (2, 2), (-2, 2),
    (0, 3), (3, 0), (1, 3), (-1, 3), (3, 1), (-3, 1), (2, 3), (-2, 3), (3, 2), (-3, 2), (0, 4), (4, 0),
    (1, 4), (-1, 4), (4, 1), (-4, 1), (3, 3), (-3, 3), (2, 4), (-2, 4), (4, 2), (-4, 2), (0, 5), (3, 4),
    (-3, 4), (4, 3), (-4, 3), (5, 0), (1, 5), (-1, 5), (5, 1), (-5, 1), (2, 5), (-2, 5), (5, 2), (-5, 2),
    (4, 4), (-4, 4), (3, 5), (-3, 5), (5, 3), (-5, 3), (0, 6), (6, 0), (1, 6), (-1, 6), (6, 1), (-6, 1),
    (2, 6), (-2, 6), (6, 2), (-6, 2), (4, 5), (-4, 5), (5, 4), (-5, 4), (3, 6), (-3, 6), (6, 3), (-6, 3),
    (0, 7), (7, 0), (1, 7), (-1, 7), (5, 5), (-5, 5), (7, 1), (-7, 1), (4, 6), (-4, 6), (6, 4), (-6, 4),
    (2, 7), (-2, 7), (7, 2), (-7, 2), (3, 7), (-3, 7), (7, 3), (-7, 3), (5, 6), (-5, 6), (6, 5), (-6, 5),
    (8, 0), (4, 7), (-4, 7), (7, 4), (-7, 4), (8, 1), (8, 2), (6, 6), (-6, 6), (8, 3), (5, 7), (-5, 7),
    (7, 5), (-7, 5), (8, 4), (6, 7), (-6, 7), (7, 6), (-7, 6), (8, 5), (7, 7), (-7, 7), (8, 6), (8, 7),
];

/// Whether the data of a picture of this size, after its header, needs no more than a decoder should be given. Data that is no
/// such thing is left for the decoder to refuse.
pub fn check(data: &mut dyn Read, width: u32, height: u32) -> Result<(), ThumbnailError> {
    let mut bits = Bits { data, buffer: Vec::new(), at: 0, held: 0, count: 0 };
    match groups(&mut bits, width, height) {
        Some(groups) if groups > GROUPS_MAX => Err(ThumbnailError::TooLarge),
        Some(_) => Ok(()),
        None => Err(ThumbnailError::broken("lossless data that breaks off or makes no sense")),
    }
}

/// How many sets of codes the picture has.
fn groups(bits: &mut Bits<'_>, mut width: u32, height: u32) -> Option<u32> {
    let mut seen = [false; 4];
    while bits.read(1)? == 1 {
        let kind = bits.read(2)? as usize;
        if std::mem::replace(&mut seen[kind], true) {
            return None;
        }
        match kind {
            // Predictor, colour.
            0 | 1 => {
                let block = bits.read(3)? + 2;
                sub_image(bits, blocks(width, block), blocks(height, block))?;
            }
            3 => {
                let colours = bits.read(8)? + 1;
                sub_image(bits, colours, 1)?;
                let packed = match colours {
                    0..=2 => 3,
                    3..=4 => 2,
                    5..=16 => 1,
                    _ => 0,
                };
                width = blocks(width, packed);
            }
            // Subtract green.
            _ => {}
        }
    }
    if bits.read(1)? == 1 {
        bits.read(4)?;
    }
    if bits.read(1)? == 0 {
        return Some(1);
    }
    let block = bits.read(3)? + 2;
    let choices = sub_image(bits, blocks(width, block), blocks(height, block))?;
    // Red and green of each are the number of its set.
    choices.into_iter().map(|choice| 1 + (choice >> 8 & 0xffff)).max()
}

fn blocks(side: u32, bits: u32) -> u32 {
    side.div_ceil(1 << bits)
}

/// A picture within: its own set of codes, and no transforms. Pixels as 0xAARRGGBB.
fn sub_image(bits: &mut Bits<'_>, width: u32, height: u32) -> Option<Vec<u32>> {
    let cache_bits = if bits.read(1)? == 1 { bits.read(4)? } else { 0 };
    if cache_bits > 11 {
        return None;
    }
    let mut cache = vec![0_u32; if cache_bits == 0 { 0 } else { 1 << cache_bits }];
    let green = Code::read(bits, 256 + 24 + cache.len())?;
    let [red, blue, alpha] = [Code::read(bits, 256)?, Code::read(bits, 256)?, Code::read(bits, 256)?];
    let distance = Code::read(bits, 40)?;
    let length = width as usize * height as usize;
    let mut pixels: Vec<u32> = Vec::with_capacity(length);
    while pixels.len() < length {
        let from = pixels.len();
        match green.next(bits)? {
            code @ 0..256 => {
                let (red, blue, alpha) = (red.next(bits)?, blue.next(bits)?, alpha.next(bits)?);
                pixels.push(alpha << 24 | red << 16 | code << 8 | blue);
            }
            code @ 256..280 => {
                let copied = prefixed(bits, code - 256)? as usize;
                let symbol = distance.next(bits)?;
                let back = prefixed(bits, symbol)? as usize;
                let back = distance_of(back, width as usize);
                for _ in 0..copied.min(length - from) {
                    let pixel = *pixels.get(pixels.len().checked_sub(back)?)?;
                    pixels.push(pixel);
                }
            }
            code => pixels.push(*cache.get(code as usize - 280)?),
        }
        if cache_bits > 0 {
            for pixel in &pixels[from..] {
                cache[(0x1e35_a7bd_u32.wrapping_mul(*pixel) >> (32 - cache_bits)) as usize] = *pixel;
            }
        }
    }
    Some(pixels)
}

/// A length or distance: a prefix and extra bits. (RFC 9649, 5.2.2.)
fn prefixed(bits: &mut Bits<'_>, prefix: u32) -> Option<u32> {
    if prefix < 4 {
        return Some(prefix + 1);
    }
    let extra = (prefix - 2) >> 1;
    Some(((2 + (prefix & 1)) << extra) + bits.read(extra)? + 1)
}

/// How far back a distance code points.
fn distance_of(code: usize, width: usize) -> usize {
    if code > NEIGHBOURS {
        return code - NEIGHBOURS;
    }
    let (x, y) = DISTANCES[code - 1];
    let back = i64::from(x) + i64::from(y) * width as i64;
    usize::try_from(back.max(1)).unwrap_or(1)
}

/// A Huffman code, as how many symbols there are of each length, and the symbols in order.
struct Code {
    of_length: [u16; LONGEST_CODE + 1],
    symbols: Vec<u16>,
}

/// A code of two symbols in the order given, which is how the decoder reads it (also if they are the same, or the larger comes
/// first): what is read here must be what it reads.
fn pair(zero: u16, one: u16) -> Code {
    let mut of_length = [0; LONGEST_CODE + 1];
    of_length[1] = 2;
    Code { of_length, symbols: vec![zero, one] }
}

impl Code {
    /// RFC 9649, 3.7.2.1.
    fn read(bits: &mut Bits<'_>, alphabet: usize) -> Option<Self> {
        let mut lengths = vec![0_u8; alphabet];
        if bits.read(1)? == 1 {
            let two = bits.read(1)? == 1;
            let wide = bits.read(1)? == 1;
            let zero = bits.read(if wide { 8 } else { 1 })?;
            let one = if two { Some(bits.read(8)?) } else { None };
            if zero.max(one.unwrap_or(0)) as usize >= alphabet {
                return None;
            }
            *lengths.get_mut(zero as usize)? = 1;
            let single = Self::from_lengths(&lengths)?;
            return Some(one.map_or(single, |one| pair(zero as u16, one as u16)));
        }
        let mut of_lengths = [0_u8; CODE_LENGTHS];
        let given = 4 + bits.read(4)? as usize;
        for at in &CODE_LENGTH_ORDER[..given] {
            of_lengths[*at] = bits.read(3)? as u8;
        }
        let code = Self::from_lengths(&of_lengths)?;
        let mut left = alphabet;
        if bits.read(1)? == 1 {
            let width = 2 + 2 * bits.read(3)?;
            left = 2 + bits.read(width)? as usize;
            if left > alphabet {
                return None;
            }
        }
        let (mut at, mut previous) = (0, 8);
        while at < alphabet && left > 0 {
            left -= 1;
            let (length, times) = match code.next(bits)? as u8 {
                length @ 0..16 => (length, 1),
                16 => (previous, 3 + bits.read(2)?),
                17 => (0, 3 + bits.read(3)?),
                _ => (0, 11 + bits.read(7)?),
            };
            if length != 0 {
                previous = length;
            }
            for _ in 0..times {
                *lengths.get_mut(at)? = length;
                at += 1;
            }
        }
        Self::from_lengths(&lengths)
    }

    fn from_lengths(lengths: &[u8]) -> Option<Self> {
        let mut code = Self { of_length: [0; LONGEST_CODE + 1], symbols: Vec::new() };
        for length in 1..=LONGEST_CODE {
            let before = code.symbols.len();
            let with = lengths.iter().enumerate().filter(|(_, has)| usize::from(**has) == length);
            code.symbols.extend(with.map(|(symbol, _)| symbol as u16));
            code.of_length[length] = (code.symbols.len() - before) as u16;
        }
        (!code.symbols.is_empty()).then_some(code)
    }

    /// The next symbol. The only symbol of a code takes no bits.
    fn next(&self, bits: &mut Bits<'_>) -> Option<u32> {
        if self.symbols.len() == 1 {
            return Some(u32::from(self.symbols[0]));
        }
        let (mut code, mut first, mut index) = (0_i32, 0_i32, 0_i32);
        for count in &self.of_length[1..] {
            code |= bits.read(1)? as i32;
            let count = i32::from(*count);
            if code - count < first {
                return self.symbols.get((index + code - first) as usize).copied().map(u32::from);
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }
}

/// Bits, the lowest of each byte first.
struct Bits<'d> {
    data: &'d mut dyn Read,
    buffer: Vec<u8>,
    at: usize,
    held: u64,
    count: u32,
}

impl Bits<'_> {
    /// Up to 32 of them. None at the end.
    fn read(&mut self, wanted: u32) -> Option<u32> {
        while self.count < wanted {
            self.held |= u64::from(self.next_byte()?) << self.count;
            self.count += 8;
        }
        let bits = self.held & ((1 << wanted) - 1);
        self.held >>= wanted;
        self.count -= wanted;
        Some(bits as u32)
    }

    fn next_byte(&mut self) -> Option<u8> {
        if self.at == self.buffer.len() {
            self.buffer.resize(4 << 10, 0);
            let got = self.data.read(&mut self.buffer).ok()?;
            self.buffer.truncate(got);
            self.at = 0;
        }
        let byte = *self.buffer.get(self.at)?;
        self.at += 1;
        Some(byte)
    }
}
