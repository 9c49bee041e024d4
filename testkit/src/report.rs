//! One shape for the results of every benchmark.
//!
//! A benchmark is a program that measures and prints one [`Results`] as JSON on standard output (progress belongs to
//! standard error). What becomes of it (the table, the file under `target/bench/`, the lines about the goals) is the
//! work of `cargo xtask bench`, so that all of them look the same:
//!
//! ```json
//! {
//!   "rows":  [{"id": "tc-one-mask", "unit": "ns", "samples": [71.2, 70.9, 73.0]}],
//!   "goals": [{"id": "tc-one-mask-ns", "row": "tc-one-mask", "relation": "<=", "target": 90}],
//!   "notes": ["less the empty program's time"]
//! }
//! ```
//!
//! A row's samples are repetitions of one measurement; its figure is their median. A goal compares that figure with a
//! target. A difference or a ratio of two measurements is a row too, computed sample by sample by the benchmark.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

use crate::Need;

/// The whole of a benchmark: measures, where all that it needs is there, and prints the results. Ends the process with 1, and one line
/// that says why, where it can't.
pub fn measure(needs: &[Need], measure: impl FnOnce(&mut Results) -> io::Result<()>) {
    let mut results = Results::default();
    let measured = match needs.iter().find_map(|need| need.missing()) {
        Some(reason) => Err(io::Error::other(reason)),
        None => measure(&mut results),
    };
    match measured {
        Ok(()) => results.print(),
        Err(error) => {
            eprintln!("can't measure: {error}");
            std::process::exit(1);
        }
    }
}

/// Everything that one benchmark found.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Results {
    /// The measurements.
    pub rows: Vec<Row>,
    /// What they are compared with.
    #[serde(default)]
    pub goals: Vec<Goal>,
    /// Lines for the reader: what was measured, on what, what was left out.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// One measurement, repeated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name, unique in the results.
    pub id: String,
    /// Unit of the samples: `ns`, `pps`, `Gbit/s`, `insns`, or empty for a ratio.
    pub unit: String,
    /// One figure a repetition.
    pub samples: Vec<f64>,
}

/// A figure to be reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// Name of the goal.
    pub id: String,
    /// The row whose median is compared.
    pub row: String,
    /// How it is compared.
    pub relation: Relation,
    /// With what, in the row's unit.
    pub target: f64,
}

/// On which side of the target a figure must lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relation {
    /// At most the target.
    #[serde(rename = "<=")]
    AtMost,
    /// At least the target.
    #[serde(rename = ">=")]
    AtLeast,
}

/// What the samples of a row say.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// The figure of the row.
    pub median: f64,
    /// A tenth of the samples lies below.
    pub p10: f64,
    /// A tenth of the samples lies above.
    pub p90: f64,
    /// (p90 - p10) / median: how far the repetitions lie apart. 0 if the median is.
    pub spread: f64,
}

/// A goal with what was measured: its text is `goal ID VALUE RELATION TARGET met|missed`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// The goal.
    #[serde(flatten)]
    pub goal: Goal,
    /// The row's median; `None` if it was not measured.
    pub value: Option<f64>,
    /// Whether the goal is met. What was not measured is missed.
    pub met: bool,
}

impl Results {
    /// Adds a measurement.
    pub fn row(&mut self, id: &str, unit: &str, samples: impl IntoIterator<Item = f64>) -> &mut Self {
        self.rows.push(Row { id: id.into(), unit: unit.into(), samples: samples.into_iter().collect() });
        self
    }

    /// Adds a goal for the row `row`.
    pub fn goal(&mut self, id: &str, row: &str, relation: Relation, target: f64) -> &mut Self {
        self.goals.push(Goal { id: id.into(), row: row.into(), relation, target });
        self
    }

    /// Adds a line for the reader.
    pub fn note(&mut self, text: impl Into<String>) -> &mut Self {
        self.notes.push(text.into());
        self
    }

    /// Prints the results as `cargo xtask bench` reads them.
    pub fn print(&self) {
        match serde_json::to_string(self) {
            Ok(json) => println!("{json}"),
            Err(error) => eprintln!("can't write the results: {error}"),
        }
    }

    /// Compares every goal with its row.
    pub fn verdicts(&self) -> Vec<Verdict> {
        self.goals.iter().map(|goal| self.verdict(goal)).collect()
    }

    fn verdict(&self, goal: &Goal) -> Verdict {
        let row = self.rows.iter().find(|row| row.id == goal.row);
        let value = row.and_then(Row::summary).map(|summary| summary.median);
        let met = value.is_some_and(|value| match goal.relation {
            Relation::AtMost => value <= goal.target,
            Relation::AtLeast => value >= goal.target,
        });
        Verdict { goal: goal.clone(), value, met }
    }
}

impl Row {
    /// Median and spread; `None` without a finite sample.
    pub fn summary(&self) -> Option<Summary> {
        let mut samples: Vec<f64> = self.samples.iter().copied().filter(|sample| sample.is_finite()).collect();
        samples.sort_by(f64::total_cmp);
        let quantile = |q| quantile(&samples, q);
        let (p10, median, p90) = (quantile(0.1)?, quantile(0.5)?, quantile(0.9)?);
        let spread = if median == 0.0 { 0.0 } else { (p90 - p10) / median.abs() };
        Some(Summary { median, p10, p90, spread })
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AtMost => "<=",
            Self::AtLeast => ">=",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value.map_or_else(|| "none".into(), figure);
        let met = if self.met { "met" } else { "missed" };
        write!(f, "goal {} {value} {} {} {met}", self.goal.id, self.goal.relation, figure(self.goal.target))
    }
}

/// A figure with as many digits as say something: three to four, and no fraction of zeros.
pub fn figure(value: f64) -> String {
    let digits = match value.abs() {
        0.0..1.0 => 3,
        1.0..10.0 => 2,
        10.0..1000.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Linear interpolation between the two nearest of the sorted samples.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let at = q * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted.get(at.floor() as usize)?, sorted.get(at.ceil() as usize)?);
    Some(below + (above - below) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_one_line() {
        let mut results = Results::default();
        results.row("a", "ns", [73.0, 71.0, 70.0]).row("empty", "ns", []);
        let cases = [
            ("a", Relation::AtMost, 90.0, "goal x 71 <= 90 met"),
            ("a", Relation::AtMost, 70.25, "goal x 71 <= 70.2 missed"),
            ("a", Relation::AtLeast, 0.95, "goal x 71 >= 0.95 met"),
            ("empty", Relation::AtMost, 90.0, "goal x none <= 90 missed"),
            ("absent", Relation::AtLeast, 1000.0, "goal x none >= 1000 missed"),
        ];
        for (row, relation, target, line) in cases {
            results.goals.clear();
            results.goal("x", row, relation, target);
            assert_eq!(results.verdicts()[0].to_string(), line);
        }
    }

    #[test]
    fn spread_is_of_the_middle_eight_tenths() {
        let row = Row { id: "r".into(), unit: "ns".into(), samples: (0..=10).rev().map(f64::from).collect() };
        assert_eq!(row.summary(), Some(Summary { median: 5.0, p10: 1.0, p90: 9.0, spread: 1.6 }));
    }

    #[test]
    fn the_documented_contract_is_read() {
        let json = r#"{"rows":[{"id":"a","unit":"ns","samples":[1,2.5]}],
                       "goals":[{"id":"g","row":"a","relation":"<=","target":90}]}"#;
        let results: Results = serde_json::from_str(json).unwrap();
        assert!(results.verdicts()[0].met);
    }
}
