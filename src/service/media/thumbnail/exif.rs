//! The one thing in a picture's metadata that a thumbnail has to know: how the camera was held.

use super::pixels::Pixels;

/// The `Orientation` of Exif (tag 0x0112), 1 to 8: what is at the top and what is at the left of the stored picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orientation(u8);

impl Default for Orientation {
    /// Upright.
    fn default() -> Self {
        Self(1)
    }
}

/// So many entries of a directory are looked at. Cameras write about fifty.
const ENTRIES_MAX: usize = 1000;

impl Orientation {
    /// From a TIFF structure, with or without the `Exif\0\0` in front. Whatever is not readable means upright.
    pub fn from_exif(exif: &[u8]) -> Self {
        read(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif)).unwrap_or_default()
    }

    /// Whether height and width of what is displayed are width and height of what is stored.
    pub fn swaps_sides(self) -> bool {
        self.0 >= 5
    }

    /// The picture as it is displayed.
    pub fn apply(self, stored: Pixels) -> Pixels {
        if self.0 == 1 {
            return stored;
        }
        let (w, h) = (stored.width as usize, stored.height as usize);
        let (width, height) = if self.swaps_sides() { (h, w) } else { (w, h) };
        let mut bytes = Vec::with_capacity(stored.bytes.len());
        for y in 0..height {
            for x in 0..width {
                let (from_x, from_y) = match self.0 {
                    2 => (w - 1 - x, y),
                    3 => (w - 1 - x, h - 1 - y),
                    4 => (x, h - 1 - y),
                    5 => (y, x),
                    6 => (y, h - 1 - x),
                    7 => (w - 1 - y, h - 1 - x),
                    _ => (w - 1 - y, x),
                };
                let at = (from_y * w + from_x) * stored.channels;
                bytes.extend_from_slice(&stored.bytes[at..at + stored.channels]);
            }
        }
        Pixels { width: width as u32, height: height as u32, channels: stored.channels, bytes }
    }
}

fn read(tiff: &[u8]) -> Option<Orientation> {
    let little = match tiff.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let bytes: [u8; 2] = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let u32_at = |at: usize| {
        let bytes: [u8; 4] = tiff.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    };
    if u16_at(2)? != 42 {
        return None;
    }
    let directory = usize::try_from(u32_at(4)?).ok()?;
    let entries = usize::from(u16_at(directory)?).min(ENTRIES_MAX);
    let found = (0..entries).find_map(|n| {
        let at = directory.checked_add(2 + 12 * n)?;
        // A SHORT stands at the beginning of the value's four bytes.
        (u16_at(at)? == 0x0112 && u16_at(at + 2)? == 3).then(|| u16_at(at + 8)).flatten()
    })?;
    (1..=8).contains(&found).then_some(Orientation(found as u8))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An Exif block that says this and nothing else.
    pub fn exif(orientation: u16, little: bool) -> Vec<u8> {
        let mut exif = Vec::new();
        let short = |n: u16| if little { n.to_le_bytes() } else { n.to_be_bytes() };
        let long = |n: u32| if little { n.to_le_bytes() } else { n.to_be_bytes() };
        exif.extend(if little { b"II" } else { b"MM" });
        exif.extend(short(42));
        exif.extend(long(8));
        exif.extend(short(2));
        for (tag, value) in [(0x010e, 7), (0x0112, orientation)] {
            exif.extend(short(tag));
            exif.extend(short(3));
            exif.extend(long(1));
            exif.extend(short(value));
            exif.extend(short(0));
        }
        exif.extend(long(0));
        exif
    }

    #[test]
    fn the_orientation_is_read_in_both_byte_orders_and_nonsense_is_upright() {
        for orientation in 1..=8 {
            for little in [true, false] {
                let exif = exif(orientation, little);
                assert_eq!(Orientation::from_exif(&exif).0, orientation as u8);
                let with_name = [b"Exif\0\0".as_slice(), &exif].concat();
                assert_eq!(Orientation::from_exif(&with_name).0, orientation as u8);
                for cut in 0..exif.len() {
                    assert!((1..=8).contains(&Orientation::from_exif(&exif[..cut]).0));
                }
            }
        }
        assert_eq!(Orientation::from_exif(&exif(0, true)), Orientation::default());
        assert_eq!(Orientation::from_exif(&exif(9, false)), Orientation::default());
        assert_eq!(Orientation::from_exif(b"II*\0\xff\xff\xff\xff"), Orientation::default());
        assert_eq!(Orientation::from_exif(b""), Orientation::default());
    }

    #[test]
    fn each_orientation_brings_the_corners_where_they_belong() {
        // Exif 2.3, "Orientation": where the stored top left corner is displayed.
        let stored = || Pixels { width: 3, height: 2, channels: 3, bytes: (0..18).map(|n| n / 3).collect() };
        let shown: [(u8, [u8; 6]); 8] = [
            (1, [0, 1, 2, 3, 4, 5]),
            (2, [2, 1, 0, 5, 4, 3]),
            (3, [5, 4, 3, 2, 1, 0]),
            (4, [3, 4, 5, 0, 1, 2]),
            (5, [0, 3, 1, 4, 2, 5]),
            (6, [3, 0, 4, 1, 5, 2]),
            (7, [5, 2, 4, 1, 3, 0]),
            (8, [2, 5, 1, 4, 0, 3]),
        ];
        for (orientation, pixels) in shown {
            let upright = Orientation(orientation).apply(stored());
            let first: Vec<u8> = upright.bytes.chunks_exact(3).map(|pixel| pixel[0]).collect();
            assert_eq!(first, pixels, "orientation {orientation}");
            let sides = if orientation >= 5 { (2, 3) } else { (3, 2) };
            assert_eq!((upright.width, upright.height), sides);
        }
    }
}
