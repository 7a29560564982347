//! Makes pictures smaller, by mean values: each pixel of the thumbnail is the mean of the part of the picture that it covers, to 256ths of a
//! pixel. Rows come in from the top and are added up, so that the picture itself need never be in memory.

use super::pixels::Pixels;
use super::size::Plan;

/// Parts of a pixel.
const UNIT: u64 = 256;

/// Takes rows in.
pub struct Resizer {
    plan: Plan,
    channels: usize,
    /// Of the picture's columns, those that the plan shows, at least in part.
    first_column: usize,
    columns: usize,
    /// The next row of the picture.
    y: u64,
    /// Sums of what belongs to the next row of the thumbnail, each sample times the 256ths of its row that do. They fit: a picture has at most
    /// [`super::header::SIDE_MAX`] rows.
    sums: Vec<u32>,
    premultiplied: Vec<u8>,
    thumbnail: Pixels,
}

impl Resizer {
    /// For rows of pixels with 3 or 4 samples.
    pub fn new(plan: Plan, channels: usize) -> Self {
        let first_column = (plan.left / UNIT) as usize;
        let columns = (plan.left + plan.part_width).div_ceil(UNIT) as usize - first_column;
        let bytes = Vec::with_capacity(plan.width as usize * plan.height as usize * channels);
        Self {
            plan,
            channels,
            first_column,
            columns,
            y: 0,
            sums: vec![0; columns * channels],
            premultiplied: Vec::new(),
            thumbnail: Pixels { width: plan.width, height: plan.height, channels, bytes },
        }
    }

    /// Whether no more rows are needed.
    pub fn is_complete(&self) -> bool {
        self.rows_done() == u64::from(self.plan.height)
    }

    fn rows_done(&self) -> u64 {
        (self.thumbnail.bytes.len() / (self.plan.width as usize * self.channels)) as u64
    }

    /// The next row of the picture, all of it.
    pub fn push(&mut self, row: &[u8]) {
        let (from, to) = (self.y * UNIT, (self.y + 1) * UNIT);
        self.y += 1;
        if to <= self.plan.top || self.is_complete() {
            return;
        }
        let start = self.first_column * self.channels;
        let row = &row[start..start + self.columns * self.channels];
        let premultiplied;
        let row = if self.channels == 4 {
            premultiplied = self.premultiply(row);
            &premultiplied[..]
        } else {
            premultiplied = Vec::new();
            row
        };
        while !self.is_complete() {
            let (begins, ends) = self.bounds(self.rows_done());
            let weight = to.min(ends).saturating_sub(from.max(begins)) as u32;
            add(&mut self.sums, row, weight);
            if ends > to {
                break;
            }
            self.finish_row(ends - begins);
        }
        self.premultiplied = premultiplied;
    }

    /// The rows of the picture that a row of the thumbnail covers, in 256ths.
    fn bounds(&self, row: u64) -> (u64, u64) {
        let edge = |n: u64| self.plan.top + n * self.plan.part_height / u64::from(self.plan.height);
        (edge(row), edge(row + 1))
    }

    /// Colours weigh as much as they are seen.
    fn premultiply(&mut self, row: &[u8]) -> Vec<u8> {
        let mut to = std::mem::take(&mut self.premultiplied);
        to.clear();
        for pixel in row.chunks_exact(4) {
            let alpha = u32::from(pixel[3]);
            let seen = |sample: u8| ((u32::from(sample) * alpha + 127) / 255) as u8;
            to.extend_from_slice(&[seen(pixel[0]), seen(pixel[1]), seen(pixel[2]), pixel[3]]);
        }
        to
    }

    fn finish_row(&mut self, rows: u64) {
        let offset = self.first_column as u64 * UNIT;
        let width = u64::from(self.plan.width);
        let edge = |n: u64| self.plan.left + n * self.plan.part_width / width - offset;
        for column in 0..width {
            let (begins, ends) = (edge(column), edge(column + 1));
            let mut pixel = [0_u64; 4];
            let (first, last) = (begins / UNIT, (ends - 1) / UNIT);
            for x in first..=last {
                let weight = ((x + 1) * UNIT).min(ends) - (x * UNIT).max(begins);
                let at = x as usize * self.channels;
                for (sum, sample) in pixel.iter_mut().zip(&self.sums[at..at + self.channels]) {
                    *sum += u64::from(*sample) * weight;
                }
            }
            let share = 1.0 / (rows * (ends - begins)) as f64;
            let mut mean = pixel.map(|sum| (sum as f64 * share + 0.5) as u32);
            if self.channels == 4 && mean[3] > 0 {
                let alpha = mean[3];
                mean[..3].iter_mut().for_each(|sample| *sample = (*sample * 255 + alpha / 2) / alpha);
            }
            let mean = mean.map(|sample| sample.min(255) as u8);
            self.thumbnail.bytes.extend_from_slice(&mean[..self.channels]);
        }
        self.sums.fill(0);
    }

    /// The thumbnail; none if rows are missing.
    pub fn finish(self) -> Option<Pixels> {
        self.is_complete().then_some(self.thumbnail)
    }
}

/// By itself, so that the compiler sees that these are no aliases and does many at a time.
fn add(sums: &mut [u32], row: &[u8], weight: u32) {
    for (sum, sample) in sums.iter_mut().zip(row) {
        *sum += u32::from(*sample) * weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(of: (u64, u64), to: (u32, u32)) -> Plan {
        let (part_width, part_height) = (of.0 << 8, of.1 << 8);
        Plan { left: 0, top: 0, part_width, part_height, width: to.0, height: to.1 }
    }

    fn resize(plan: Plan, channels: usize, of: (usize, usize), bytes: &[u8]) -> Vec<u8> {
        let mut resizer = Resizer::new(plan, channels);
        bytes.chunks_exact(of.0 * channels).for_each(|row| resizer.push(row));
        resizer.finish().expect("all rows came").bytes
    }

    #[test]
    fn each_pixel_is_the_mean_of_what_it_covers() {
        // 3 columns onto 2: each covers one and a half.
        let row = [10, 10, 10, 40, 40, 40, 100, 100, 100];
        assert_eq!(resize(plan((3, 1), (2, 1)), 3, (3, 1), &row), [20, 20, 20, 80, 80, 80]);
        let column = row;
        assert_eq!(resize(plan((1, 3), (1, 2)), 3, (1, 3), &column), [20, 20, 20, 80, 80, 80]);
        let four = [[0, 0, 255], [0, 100, 255], [0, 100, 255], [255, 200, 255]].concat();
        assert_eq!(resize(plan((2, 2), (1, 1)), 3, (2, 2), &four), [64, 100, 255]);
        assert_eq!(resize(plan((2, 2), (2, 2)), 3, (2, 2), &four), four, "the same size is the same picture");
    }

    #[test]
    fn what_is_transparent_lends_no_colour() {
        let half = [[255, 0, 0, 255], [0, 255, 0, 0]].concat();
        assert_eq!(resize(plan((2, 1), (1, 1)), 4, (2, 1), &half), [255, 0, 0, 128]);
        let nothing = [[255, 0, 0, 0], [0, 255, 0, 0]].concat();
        assert_eq!(resize(plan((2, 1), (1, 1)), 4, (2, 1), &nothing), [0, 0, 0, 0]);
    }

    #[test]
    fn a_part_is_cut_out_to_fractions_of_a_pixel() {
        let plan = Plan { left: 128, top: 0, part_width: 512, part_height: 256, width: 1, height: 1 };
        let row = [0, 0, 0, 100, 100, 100, 200, 200, 200, 255, 255, 255];
        assert_eq!(resize(plan, 3, (4, 1), &row), [100, 100, 100]);
    }

    #[test]
    fn the_largest_sums_fit() {
        let rows = u64::from(super::super::header::SIDE_MAX);
        let mut resizer = Resizer::new(plan((1, rows), (1, 1)), 3);
        (0..rows).for_each(|_| resizer.push(&[255, 254, 0]));
        assert_eq!(resizer.finish().expect("all rows came").bytes, [255, 254, 0]);
    }
}
