//! Bars side by side as SVG, by hand: a few rectangles and words are less than a library for them.

use std::fmt::Write as _;

use testkit::report::figure;

/// Bars in groups: one group a case, in each the same series in the same order.
pub(super) struct Plot<'a> {
    pub(super) title: &'a str,
    /// What the bars count.
    pub(super) unit: &'a str,
    pub(super) series: &'a [&'a str],
    /// Each with its name and a bar for each series, if there is one: median, and where a tenth and nine tenths of the samples lie.
    pub(super) groups: Vec<(String, Vec<Option<Bar>>)>,
}

/// A figure with its spread.
#[derive(Clone, Copy)]
pub(super) struct Bar {
    pub(super) median: f64,
    pub(super) p10: f64,
    pub(super) p90: f64,
}

/// Colours that people who see few of them tell apart (Okabe and Ito).
const COLOURS: [&str; 7] = ["#999999", "#0072b2", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7"];

// In pixels.
const WIDTH: f64 = 860.0;
const LEFT: f64 = 170.0;
const RIGHT: f64 = 70.0;
const TOP: f64 = 76.0;
const BAR: f64 = 11.0;
const GAP: f64 = 14.0;

impl Plot<'_> {
    /// The picture.
    pub(super) fn svg(&self) -> String {
        let bars = |group: &[Option<Bar>]| group.iter().flatten().count() as f64;
        let height = TOP + self.groups.iter().map(|(_, group)| bars(group) * BAR + GAP).sum::<f64>() + 10.0;
        let largest =
            self.groups.iter().flat_map(|(_, group)| group.iter().flatten()).map(|bar| bar.p90.max(bar.median));
        let scale = (WIDTH - LEFT - RIGHT) / largest.fold(f64::MIN_POSITIVE, f64::max);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        text(&mut svg, 10.0, 20.0, "start", &format!("{} ({})", self.title, self.unit));
        for (i, (name, colour)) in self.series.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let (x, y) = (10.0 + 205.0 * (i % 4) as f64, 30.0 + 18.0 * (i / 4) as f64);
            rectangle(&mut svg, x, y, 10.0, colour);
            text(&mut svg, x + 14.0, y + 9.0, "start", name);
        }
        let mut y = TOP;
        for (name, group) in &self.groups {
            text(&mut svg, LEFT - 8.0, y + bars(group) * BAR / 2.0 + 4.0, "end", name);
            for (bar, colour) in group.iter().zip(COLOURS.iter().cycle()) {
                let Some(bar) = bar else { continue };
                rectangle(&mut svg, LEFT, y, bar.median * scale, colour);
                let (low, high, middle) = (LEFT + bar.p10 * scale, LEFT + bar.p90 * scale, y + BAR / 2.0 - 1.0);
                let _ = writeln!(
                    svg,
                    "<path d=\"M{low:.1} {middle:.1}H{high:.1}\" stroke=\"black\" stroke-width=\"1\" fill=\"none\"/>"
                );
                text(&mut svg, LEFT + bar.p90.max(bar.median) * scale + 4.0, y + 9.0, "start", &figure(bar.median));
                y += BAR;
            }
            y += GAP;
        }
        svg + "</svg>\n"
    }
}

fn rectangle(svg: &mut String, x: f64, y: f64, width: f64, colour: &str) {
    let _ = writeln!(svg, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"9\" fill=\"{colour}\"/>");
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_bar_fills_the_width_and_one_that_is_missing_takes_no_room() {
        let bar = |median: f64| Some(Bar { median, p10: median, p90: median });
        let plot = |second| Plot {
            title: "a < b",
            unit: "frames/s",
            series: &["x", "y"],
            groups: vec![("case".into(), vec![bar(10.0), second])],
        };
        let (one, two) = (plot(None).svg(), plot(bar(5.0)).svg());
        assert!(one.contains("width=\"620.0\"") && !one.contains("width=\"310.0\""), "{one}");
        assert!(two.contains("width=\"620.0\"") && two.contains("width=\"310.0\""), "{two}");
        assert!(one.contains("a &lt; b (frames/s)"), "{one}");
        assert_eq!((one.matches("<path").count(), two.matches("<path").count()), (1, 2));
    }
}
