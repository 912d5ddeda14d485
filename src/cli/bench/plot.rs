//! An SVG plot of the rows: one line a contestant over the parameter that was swept.

use std::collections::BTreeMap;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::rows::Row;
use crate::cli::Failure;

/// What the horizontal axis shows: the first parameter of which there is more than one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    Size,
    Batch,
    Depth,
}

/// Draws the rows into a file.
pub(super) fn draw(file: &Path, rows: &[Row]) -> Result<(), Failure> {
    let failed = |text: String| Failure::Failed(format!("cannot plot {}: {text}", file.display()));
    let svg = svg(rows).map_err(failed)?;
    std::fs::write(file, svg).map_err(|error| failed(error.to_string()))
}

/// The plot as text. Rows that did not run are not in it.
fn svg(rows: &[Row]) -> Result<String, String> {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.skipped.is_none()).collect();
    let axis = Axis::of(&rows);
    // Bytes are what a sweep over sizes is about; everything else is about ops.
    let in_bytes = axis == Axis::Size && rows.iter().any(|row| row.bytes_per_s > 0.0);
    let mut lines: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for row in &rows {
        let (rate, label) = match in_bytes {
            true => (row.bytes_per_s / 1e6, axis.label(row)),
            false => (row.ops_per_s / 1e6, axis.label(row)),
        };
        // A contestant without payload has no place among rates of bytes.
        if rate > 0.0 {
            lines.entry(label).or_default().push((axis.place(row), rate));
        }
    }
    let mut out = String::new();
    {
        let area = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
        let unit = if in_bytes { "MB/s" } else { "million ops/s" };
        let op = rows.first().map_or("nothing", |row| row.op.name());
        let title = format!("verbring bench: {op}, medians of alternating slices");
        chart(&area, &title, axis, unit, &lines)
            .and_then(|()| area.present())
            .map_err(|error| error.to_string())?;
    }
    Ok(out)
}

type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn chart<'a>(
    area: &DrawingArea<SVGBackend<'a>, Shift>,
    title: &str,
    axis: Axis,
    unit: &str,
    lines: &BTreeMap<String, Vec<(f64, f64)>>,
) -> Drawn<'a> {
    area.fill(&WHITE)?;
    let points = || lines.values().flatten();
    let left = points().map(|point| point.0).fold(f64::INFINITY, f64::min).min(1e12);
    let right = points().map(|point| point.0).fold(left * 2.0, f64::max);
    let top = points().map(|point| point.1).fold(1e-6, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(title, ("sans-serif", 16))
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d((left..right).log_scale().base(2.0), 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc(axis.name())
        .y_desc(unit)
        .x_label_formatter(&|value| short(*value))
        .draw()?;
    for (index, (label, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(index).stroke_width(2);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color))?
            .label(label)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color));
        chart.draw_series(
            points.iter().map(|point| Circle::new(*point, 3, color.color.to_rgba().filled())),
        )?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()
}

impl Axis {
    fn of(rows: &[&Row]) -> Self {
        let varies = |value: fn(&Row) -> u64| {
            // Contestants without payload have no size at any point.
            let mut values = rows.iter().map(|row| value(row)).filter(|value| *value > 0);
            values.next().is_some_and(|first| values.any(|value| value != first))
        };
        if varies(|row| row.size_bytes) {
            Self::Size
        } else if varies(|row| row.batch.into()) {
            Self::Batch
        } else {
            Self::Depth
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Size => "bytes",
            Self::Batch => "batch",
            Self::Depth => "depth",
        }
    }

    fn place(self, row: &Row) -> f64 {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "an op has less than 2^31 bytes")]
            Self::Size => row.point_bytes as f64,
            Self::Batch => row.batch.into(),
            Self::Depth => row.depth.into(),
        }
    }

    /// The contestant, and what else tells its lines apart.
    fn label(self, row: &Row) -> String {
        let (who, batch, depth) = (row.who.name(), row.batch, row.depth);
        match self {
            Self::Size => format!("{who}, batch {batch}, depth {depth}"),
            Self::Batch if row.bench == "pipelined" => format!("{who}, depth {depth}"),
            Self::Batch => who.to_string(),
            Self::Depth => format!("{who}, batch {batch}"),
        }
    }
}

/// A number as short as it can be said.
pub(super) fn short(value: f64) -> String {
    for (unit, factor) in [("G", 1024.0 * 1024.0 * 1024.0), ("M", 1024.0 * 1024.0), ("K", 1024.0)] {
        if value >= factor && (value / factor).fract() < 1e-9 {
            return format!("{}{unit}", value / factor);
        }
    }
    format!("{value:.0}")
}

/// Pixels.
const SIZE: (u32, u32) = (900, 540);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::rows::tests::sample;

    #[test]
    fn a_sweep_over_sizes_shows_bytes_of_those_that_move_some() {
        let rows: Vec<Row> =
            [64, 4096, 1 << 20].into_iter().flat_map(|size| sample(size, false)).collect();
        let svg = svg(&rows).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in [
            "MB/s",
            ">\nbytes\n<",
            "verbring, batch 1, depth 1",
            "bare_memcpy, batch 1, depth 1",
            "1M",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("bare, batch") && !svg.contains("sqpoll"), "no payload, not run");
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_single_point_and_no_point_can_be_drawn() {
        let one = svg(&sample(64, false)).unwrap();
        assert!(one.contains("million ops/s") && one.contains("bare, batch 1"));
        assert_eq!(one.matches("<circle").count(), 3);
        let none = svg(&[]).unwrap();
        assert!(none.starts_with("<svg") && !none.contains("NaN") && !none.contains("inf"));
    }

    #[test]
    fn numbers_are_short() {
        let given = [1.0, 64.0, 1000.0, 1024.0, 4096.0, 1_048_576.0, 1_073_741_824.0];
        let expected = ["1", "64", "1000", "1K", "4K", "1M", "1G"];
        assert_eq!(given.map(short), expected);
    }
}
