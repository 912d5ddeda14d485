//! SVG charts of the rounds that compare engines: bars by group, and lines over a swept window.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::cli::Failure;

/// Bars of several series, side by side in each group.
pub(super) struct Bars<'a> {
    pub(super) title: &'a str,
    pub(super) unit: &'a str,
    pub(super) series: &'a [&'a str],
    /// A name, and a value for each series.
    pub(super) groups: Vec<(String, Vec<f64>)>,
}

/// One chart of lines over the same parameter as the charts beside it.
pub(super) struct Lines<'a> {
    pub(super) title: &'a str,
    pub(super) parameter: &'a str,
    pub(super) unit: &'a str,
    pub(super) series: Vec<(String, Vec<(f64, f64)>)>,
}

/// Draws bars into a file.
pub(super) fn draw_bars(file: &Path, bars: &Bars<'_>) -> Result<(), Failure> {
    write(file, bars_svg(bars))
}

/// Draws charts of lines, one below the other, into a file.
pub(super) fn draw_lines(file: &Path, charts: &[Lines<'_>]) -> Result<(), Failure> {
    write(file, lines_svg(charts))
}

fn write(file: &Path, svg: Result<String, String>) -> Result<(), Failure> {
    let failed = |text: String| Failure::Failed(format!("cannot plot {}: {text}", file.display()));
    std::fs::write(file, svg.map_err(failed)?).map_err(|error| failed(error.to_string()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn bars_svg(bars: &Bars<'_>) -> Result<String, String> {
    let mut out = String::new();
    {
        let area = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
        bar_chart(&area, bars).and_then(|()| area.present()).map_err(|error| error.to_string())?;
    }
    Ok(out)
}

fn lines_svg(charts: &[Lines<'_>]) -> Result<String, String> {
    let mut out = String::new();
    {
        let area = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
        let parts = area.split_evenly((charts.len().max(1), 1));
        for (part, lines) in parts.iter().zip(charts) {
            line_chart(part, lines).map_err(|error| error.to_string())?;
        }
        area.present().map_err(|error| error.to_string())?;
    }
    Ok(out)
}

fn bar_chart<'a>(area: &Area<'a>, bars: &Bars<'_>) -> Drawn<'a> {
    area.fill(&WHITE)?;
    let top = bars.groups.iter().flat_map(|(_, values)| values).fold(1e-9_f64, |a, b| a.max(*b));
    let right = float(bars.groups.len().max(1));
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(bars.title, ("sans-serif", 16))
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..right, 0.0..top * 1.1)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(bars.groups.len() * 2 + 1)
        .x_label_formatter(&|x| group_at(bars, *x))
        .y_desc(bars.unit)
        .draw()?;
    let width = 0.8 / float(bars.series.len().max(1));
    for (index, label) in bars.series.iter().enumerate() {
        let color = Palette99::pick(index).filled();
        let bar = |(at, (_, values)): (usize, &(String, Vec<f64>))| {
            let left = float(at) + 0.1 + width * float(index);
            let value = values.get(index).copied().unwrap_or(0.0);
            Rectangle::new([(left, 0.0), (left + width * 0.9, value)], color)
        };
        chart
            .draw_series(bars.groups.iter().enumerate().map(bar))?
            .label(*label)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()
}

/// The name of a group stands below its middle, and nothing below its ends.
fn group_at(bars: &Bars<'_>, x: f64) -> String {
    let middle = |at: usize| (float(at) + 0.5 - x).abs() < 0.01;
    let mut groups = bars.groups.iter().enumerate();
    groups.find(|(at, _)| middle(*at)).map_or_else(String::new, |(_, (name, _))| name.clone())
}

fn line_chart<'a>(area: &Area<'a>, lines: &Lines<'_>) -> Drawn<'a> {
    area.fill(&WHITE)?;
    let points = || lines.series.iter().flat_map(|(_, points)| points);
    let left = points().map(|point| point.0).fold(f64::INFINITY, f64::min).clamp(1e-9, 1e15);
    let right = points().map(|point| point.0).fold(left * 2.0, f64::max);
    let top = points().map(|point| point.1).fold(1e-9, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(lines.title, ("sans-serif", 16))
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d((left..right).log_scale().base(2.0), 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc(lines.parameter)
        .y_desc(lines.unit)
        .x_label_formatter(&|value| super::plot::short(*value))
        .draw()?;
    for (index, (label, points)) in lines.series.iter().enumerate() {
        let color = Palette99::pick(index).stroke_width(2);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color))?
            .label(label)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color));
        let dot = color.color.to_rgba().filled();
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, dot)))?;
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()
}

#[expect(clippy::cast_precision_loss, reason = "bars of one chart")]
fn float(count: usize) -> f64 {
    count as f64
}

/// Pixels.
const SIZE: (u32, u32) = (900, 540);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_and_its_names_are_there() {
        let groups = ["weighted", "direct"].map(|name| (name.to_string(), vec![1.0, 2.0]));
        let bars =
            Bars { title: "a title", unit: "ms", series: &["high", "low"], groups: groups.into() };
        let svg = bars_svg(&bars).unwrap();
        for text in ["a title", "ms", "high", "low", "weighted", "direct"] {
            assert!(svg.contains(&format!(">\n{text}\n<")), "{text}");
        }
        // The ground, a bar for each group and series, and one in the legend for each series.
        assert!(svg.matches("<rect").count() >= 1 + 4 + 2, "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn charts_of_lines_stand_below_one_another() {
        let chart = |title| Lines {
            title,
            parameter: "window bytes",
            unit: "us",
            series: vec![("p99".to_string(), vec![(65_536.0, 5.0), (131_072.0, 7.0)])],
        };
        let svg = lines_svg(&[chart("above"), chart("below")]).unwrap();
        assert!(svg.contains("above") && svg.contains("below") && svg.contains("64K"));
        assert_eq!(svg.matches("<circle").count(), 4);
    }

    #[test]
    fn nothing_can_be_drawn() {
        let none = Bars { title: "", unit: "", series: &[], groups: Vec::new() };
        let lines = Lines { title: "", parameter: "", unit: "", series: Vec::new() };
        for svg in [bars_svg(&none), lines_svg(&[lines]), lines_svg(&[])] {
            let svg = svg.unwrap();
            assert!(svg.starts_with("<svg") && !svg.contains("NaN") && !svg.contains("inf"));
        }
    }
}
