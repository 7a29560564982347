//! Which thumbnail answers a request. Any number of sizes may be asked for; few are made, or strangers could fill the disk with
//! thumbnails of one picture and keep the processor at it.

use super::header::Picture;

/// How a picture becomes smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Of the aspect asked for: what is too much on two sides is cut off.
    Crop,
    /// Of the picture's own aspect.
    Scale,
}

impl Method {
    /// As on the wire, and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Crop => "crop",
            Self::Scale => "scale",
        }
    }

    /// From the wire.
    pub fn from_wire(text: &str) -> Option<Self> {
        [Self::Crop, Self::Scale].into_iter().find(|method| method.as_str() == text)
    }
}

/// What a client would like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThumbnailRequest {
    /// In pixels, at least 1.
    pub width: u32,
    /// The same.
    pub height: u32,
    /// Clients that name none mean `scale`.
    pub method: Method,
}

/// One of the sizes that are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ThumbnailSize {
    /// In pixels, of the box that a scaled picture fits into or a cropped one fills.
    pub width: u32,
    /// The same.
    pub height: u32,
    /// How.
    pub method: Method,
}

/// The specification's sizes for `crop`, and then squares for avatars on large screens.
const SQUARES: [u32; 5] = [32, 96, 320, 640, 800];
/// The specification's sizes for `scale`, and then one for screens that have twice the pixels: clients multiply what they ask for.
const BOXES: [(u32, u32); 4] = [(320, 240), (640, 480), (800, 600), (1600, 1200)];

/// What is done to a picture for a thumbnail, in its own pixels before it is turned upright.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Left edge of the part that is shown, in 256ths of a pixel.
    pub left: u64,
    /// Top edge.
    pub top: u64,
    /// Its width.
    pub part_width: u64,
    /// Its height.
    pub part_height: u64,
    /// Pixels of the thumbnail; never more than of the part.
    pub width: u32,
    /// The same.
    pub height: u32,
}

impl ThumbnailRequest {
    /// The size to make, or none where the picture is no larger than asked for: "When the content is smaller than the requested
    /// dimensions, servers should return the original content rather than thumbnail it".
    ///
    /// The thumbnail is never smaller than one of exactly the size asked for would be, up to the largest that are made.
    pub fn answer(&self, picture: &Picture) -> Option<ThumbnailSize> {
        let (width, height) = picture.upright();
        if width <= self.width && height <= self.height {
            return None;
        }
        let square = self.width == self.height || self.width.max(self.height) <= SQUARES[1];
        if self.method == Method::Crop && square {
            let wanted = self.width.max(self.height);
            if let Some(side) = SQUARES.into_iter().find(|side| *side >= wanted) {
                return Some(ThumbnailSize { width: side, height: side, method: Method::Crop });
            }
        }
        // What is to fill an oblong is given whole, and large enough for the client to crop it.
        let (wanted_width, wanted_height) = match self.method {
            Method::Scale => fit(width, height, self.width, self.height),
            Method::Crop => (self.width.min(width), self.height.min(height)),
        };
        let boxes = BOXES.map(|(width, height)| ThumbnailSize { width, height, method: Method::Scale });
        let enough = boxes.into_iter().find(|size| {
            let (w, h) = fit(width, height, size.width, size.height);
            w >= wanted_width && h >= wanted_height
        });
        let largest = boxes[boxes.len() - 1];
        let size = enough.unwrap_or(largest);
        // The box holds the whole picture.
        (fit(width, height, size.width, size.height) != (width, height)).then_some(size)
    }
}

impl ThumbnailRequest {
    /// What another server is asked for in its place, which has the picture: one of the sizes that there are, so that what it gives is kept
    /// for all who want about that.
    pub fn of_other_server(&self) -> Self {
        let wanted = self.width.max(self.height);
        if self.method == Method::Crop && wanted <= SQUARES[1] {
            let side = if wanted <= SQUARES[0] { SQUARES[0] } else { SQUARES[1] };
            return Self { width: side, height: side, method: Method::Crop };
        }
        let enough = BOXES.into_iter().find(|(width, height)| *width >= self.width && *height >= self.height);
        let (width, height) = enough.unwrap_or(BOXES[2]);
        Self { width, height, method: Method::Scale }
    }
}

impl ThumbnailSize {
    /// The size for a still of a picture that moves and is no larger than asked for.
    pub fn of_still(picture: &Picture) -> Self {
        let (width, height) = BOXES[BOXES.len() - 1];
        let (width, height) = fit(picture.upright().0, picture.upright().1, width, height);
        Self { width, height, method: Method::Scale }
    }

    /// What to do for it.
    pub fn plan(&self, picture: &Picture) -> Plan {
        let (width, height) = picture.upright();
        let upright = match self.method {
            Method::Scale => {
                let (to_width, to_height) = fit(width, height, self.width, self.height);
                Plan {
                    left: 0,
                    top: 0,
                    part_width: u64::from(width) << 8,
                    part_height: u64::from(height) << 8,
                    width: to_width,
                    height: to_height,
                }
            }
            Method::Crop => crop(width, height, self.width, self.height),
        };
        if picture.orientation.swaps_sides() { upright.transposed() } else { upright }
    }
}

impl Plan {
    fn transposed(self) -> Self {
        Self {
            left: self.top,
            top: self.left,
            part_width: self.part_height,
            part_height: self.part_width,
            width: self.height,
            height: self.width,
        }
    }
}

/// The largest size of this aspect within the box, not larger than it is, and nowhere less than a pixel.
fn fit(width: u32, height: u32, box_width: u32, box_height: u32) -> (u32, u32) {
    let (w, h, bw, bh) = (u64::from(width), u64::from(height), u64::from(box_width), u64::from(box_height));
    if w <= bw && h <= bh {
        return (width, height);
    }
    let (to_width, to_height) =
        if bw * h < bh * w { (bw, bw * h / w.max(1)) } else { (bh * w / h.max(1), bh) };
    (to_width.max(1) as u32, to_height.max(1) as u32)
}

/// The middle of a picture, of the aspect of the box.
fn crop(width: u32, height: u32, box_width: u32, box_height: u32) -> Plan {
    // In units of which a box has as many as pixels: the largest such box within the picture.
    let (w, h) = (u64::from(width) << 8, u64::from(height) << 8);
    let (bw, bh) = (u64::from(box_width), u64::from(box_height));
    let (part_width, part_height) =
        if w * bh > h * bw { ((h * bw / bh).max(256), h) } else { (w, (w * bh / bw).max(256)) };
    // Never upscaled: a part of fewer pixels than the box stays as it is.
    let to_width = bw.min(part_width >> 8).max(1) as u32;
    let to_height = bh.min(part_height >> 8).max(1) as u32;
    Plan {
        left: (w - part_width) / 2,
        top: (h - part_height) / 2,
        part_width,
        part_height,
        width: to_width,
        height: to_height,
    }
}

#[cfg(test)]
mod tests {
    use super::super::exif::Orientation;
    use super::super::header::Format;
    use super::*;

    fn picture(width: u32, height: u32) -> Picture {
        Picture { format: Format::Jpeg, width, height, orientation: Orientation::default() }
    }

    fn answer(of: (u32, u32), width: u32, height: u32, method: Method) -> Option<(u32, u32, Method)> {
        let size = ThumbnailRequest { width, height, method }.answer(&picture(of.0, of.1))?;
        let plan = size.plan(&picture(of.0, of.1));
        Some((plan.width, plan.height, size.method))
    }

    #[test]
    fn a_request_is_answered_by_the_next_larger_size_of_the_specification() {
        use Method::{Crop, Scale};
        let photo = (4000, 3000);
        assert_eq!(answer(photo, 32, 32, Crop), Some((32, 32, Crop)));
        assert_eq!(answer(photo, 33, 20, Crop), Some((96, 96, Crop)));
        assert_eq!(answer(photo, 97, 97, Crop), Some((320, 320, Crop)));
        assert_eq!(answer(photo, 1, 1, Scale), Some((320, 240, Scale)));
        assert_eq!(answer(photo, 320, 240, Scale), Some((320, 240, Scale)));
        assert_eq!(answer(photo, 321, 240, Scale), Some((320, 240, Scale)), "240 high is what fits");
        assert_eq!(answer(photo, 321, 241, Scale), Some((640, 480, Scale)));
        assert_eq!(answer(photo, 640, 480, Scale), Some((640, 480, Scale)));
        assert_eq!(answer(photo, 800, 600, Scale), Some((800, 600, Scale)));
        assert_eq!(answer(photo, 1600, 1200, Scale), Some((1600, 1200, Scale)));
        assert_eq!(answer(photo, u32::MAX, 1300, Scale), Some((1600, 1200, Scale)));
        assert_eq!(answer((1000, 3000), 320, 240, Scale), Some((80, 240, Scale)));
        assert_eq!(answer((3000, 1000), 320, 240, Scale), Some((320, 106, Scale)));
    }

    #[test]
    fn a_picture_is_never_made_larger() {
        use Method::{Crop, Scale};
        assert_eq!(answer((300, 200), 320, 240, Scale), None);
        assert_eq!(answer((90, 90), 96, 96, Crop), None);
        assert_eq!(answer((300, 200), 10_000, 150, Scale), None, "the smallest size would hold all of it");
        assert_eq!(answer((200, 50), 96, 96, Crop), Some((50, 50, Crop)));
        assert_eq!(answer((1, 5000), 96, 96, Crop), Some((1, 1, Crop)));
        assert_eq!(answer((5000, 1), 800, 600, Scale), Some((800, 1, Scale)));
        assert_eq!(answer((1200, 900), 1100, 2000, Scale), None, "the next size would hold all of it");
    }

    #[test]
    fn no_thumbnail_is_smaller_than_one_of_exactly_the_size_asked_for() {
        for of in [(4000, 3000), (3000, 4000), (5000, 100), (100, 5000), (801, 601), (97, 97)] {
            for width in (1..1600).step_by(53) {
                for height in (1..1200).step_by(47) {
                    for method in [Method::Crop, Method::Scale] {
                        let Some((w, h, _)) = answer(of, width, height, method) else { continue };
                        let (least_w, least_h) = match method {
                            Method::Scale => fit(of.0, of.1, width, height),
                            Method::Crop => {
                                let plan = crop(of.0, of.1, width, height);
                                (plan.width, plan.height)
                            }
                        };
                        let largest = (w, h) == fit(of.0, of.1, 1600, 1200);
                        assert!(
                            largest || (w >= least_w && h >= least_h),
                            "{of:?} asked {width}×{height} {method:?}: {w}×{h}"
                        );
                        assert!(w <= of.0 && h <= of.1, "upscaled");
                    }
                }
            }
        }
    }

    #[test]
    fn few_sizes_are_made_whatever_is_asked_for() {
        let mut made = std::collections::HashSet::new();
        for width in 1..700 {
            for height in 1..700 {
                for method in [Method::Crop, Method::Scale] {
                    let asked = ThumbnailRequest { width: width * 3, height: height * 3, method };
                    made.extend(asked.answer(&picture(6000, 4000)));
                }
            }
        }
        assert!(made.len() <= SQUARES.len() + BOXES.len(), "{made:?}");
    }
}
