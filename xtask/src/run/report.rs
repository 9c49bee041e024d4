//! What passed and what failed: each line when it is known, and all of them as a table at the end.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::interrupt;
use crate::cmd;

/// Columns of a name.
const WIDTH: usize = 26;

/// The outcome of every kind so far.
pub(super) struct Report {
    started: Instant,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    passed: bool,
    /// What was measured, or what is wrong.
    detail: String,
    time: Duration,
}

impl Report {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), rows: Vec::new() }
    }

    /// Runs one kind. What goes wrong in it is its failure, and the others go on.
    ///
    /// # Errors
    /// Only if somebody has asked for the end.
    pub(super) fn check(&mut self, name: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
        interrupt::check()?;
        let started = Instant::now();
        let result = work();
        interrupt::check()?;
        let (passed, detail) = match result {
            Ok(detail) => (true, detail),
            Err(error) => (false, format!("{error:#}").replace('\n', "; ")),
        };
        let row = Row { name: name.into(), passed, detail, time: started.elapsed() };
        println!("    {row}");
        self.rows.push(row);
        Ok(())
    }

    /// Prints the table; whether everything passed.
    pub(super) fn summary(&self) -> bool {
        println!("==> done in {}", cmd::seconds(self.started.elapsed()));
        for row in &self.rows {
            println!("    {:<6} {:<WIDTH$} {:>7}", row.outcome(), row.name, cmd::seconds(row.time));
        }
        let failed = self.rows.iter().filter(|row| !row.passed).count();
        println!("{} passed, {failed} failed", self.rows.len() - failed);
        failed == 0
    }
}

impl Row {
    fn outcome(&self) -> &'static str {
        if self.passed { "passed" } else { "FAILED" }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<6} {:<WIDTH$} {}", self.outcome(), self.name, self.detail)
    }
}

/// Two measurements taken in turns, pair by pair, of what may be worth the same.
#[derive(Default)]
pub(super) struct Pairs {
    pub(super) ours: Vec<f64>,
    pub(super) others: Vec<f64>,
}

impl Pairs {
    /// The median of ours over the other of the same pair: what changes between the pairs, such as other work of the
    /// machine, has no part in it.
    pub(super) fn ratio(&self) -> f64 {
        let ratios: Vec<f64> = self.ours.iter().zip(&self.others).map(|(ours, other)| ours / other).collect();
        median(&ratios)
    }
}

/// The median; 0 without a sample.
pub(super) fn median(samples: &[f64]) -> f64 {
    let row = testkit::report::Row { id: String::new(), unit: String::new(), samples: samples.to_vec() };
    row.summary().map_or(0.0, |summary| summary.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_is_enough_and_does_not_stop_the_others() {
        let mut report = Report::new();
        report.check("a", || Ok("fine".into())).unwrap();
        assert!(report.summary());
        report.check("b", || anyhow::bail!("two\nlines")).unwrap();
        report.check("c", || Ok(String::new())).unwrap();
        assert!(!report.summary());
        assert_eq!(report.rows[1].to_string(), format!("FAILED {:<WIDTH$} two; lines", "b"));
    }

    #[test]
    fn a_ratio_is_of_pairs() {
        let pairs = Pairs { ours: vec![9.0, 90.0, 900.0, 1.0], others: vec![10.0, 100.0, 1000.0] };
        assert_eq!(pairs.ratio(), 0.9);
        assert_eq!(Pairs::default().ratio(), 0.0);
    }

    #[test]
    fn the_median_is_of_the_middle() {
        assert_eq!([median(&[]), median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])], [0.0, 2.0, 2.5]);
    }
}
