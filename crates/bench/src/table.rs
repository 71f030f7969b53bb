// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The table, printed row by row.

use std::process::ExitCode;

use anyhow::Result;

/// What a row's figure should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// A ratio, or an amount of this unit.
    AtMost(f64, &'static str),
    /// A ratio, or an amount of this unit.
    AtLeast(f64, &'static str),
    /// A ratio that explains another.
    None,
}

impl Goal {
    fn is_met(self, figure: f64) -> Option<bool> {
        match self {
            Goal::AtMost(most, _) => Some(figure <= most),
            Goal::AtLeast(least, _) => Some(figure >= least),
            Goal::None => None,
        }
    }

    fn text(self) -> String {
        match self {
            Goal::AtMost(most, unit) => format!("≤ {most}{unit}"),
            Goal::AtLeast(least, unit) => format!("≥ {least}{unit}"),
            Goal::None => "-".into(),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Goal::AtMost(_, unit) | Goal::AtLeast(_, unit) => unit,
            Goal::None => "",
        }
    }
}

/// What was measured for a row.
#[derive(Debug)]
pub(crate) struct Figures {
    /// Our side.
    pub(crate) ours: String,
    /// The floor or the peer; what the figure is made of where there is none.
    pub(crate) other: String,
    /// What the goal is about.
    pub(crate) figure: f64,
}

impl Figures {
    /// Times in ns, the smaller the better.
    pub(crate) fn times((ours, other): (f64, f64)) -> Figures {
        let text = |ns: f64| if ns < 1000.0 { format!("{ns:.1} ns") } else { format!("{:.2} µs", ns / 1000.0) };
        Figures { ours: text(ours), other: text(other), figure: ours / other }
    }
}

/// Rows are printed as they come.
#[derive(Debug)]
pub(crate) struct Table {
    met: usize,
    missed: usize,
    failed: Vec<String>,
}

impl Table {
    /// Prints what the table is about.
    pub(crate) fn new() -> Table {
        let name = rustix::system::uname();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        println!("Linux {}, {cores} cores, load {}", name.release().to_string_lossy(), load());
        line("row", "ours", "floor or peer", "figure", "goal", "");
        Table { met: 0, missed: 0, failed: Vec::new() }
    }

    /// Measures a row and prints it.
    pub(crate) fn row(&mut self, what: &str, goal: Goal, measure: impl FnOnce() -> Result<Figures>) {
        match measure() {
            Ok(Figures { ours, other, figure }) => {
                let met = goal.is_met(figure);
                self.met += usize::from(met == Some(true));
                self.missed += usize::from(met == Some(false));
                let word = met.map_or("", |met| if met { "met" } else { "missed" });
                let digits = if figure.abs() < 10.0 { 2 } else { 1 };
                let figure = format!("{figure:.digits$}{}", goal.unit());
                line(what, &ours, &other, &figure, &goal.text(), word);
            }
            Err(error) => {
                line(what, "-", "-", "-", &goal.text(), "NOT MEASURED");
                self.failed.push(format!("{what}: {error:#}"));
            }
        }
    }

    /// Says what the rows come to.
    pub(crate) fn finish(self) -> ExitCode {
        println!("{} goals met, {} missed; load {}", self.met, self.missed, load());
        for failure in &self.failed {
            eprintln!("not measured: {failure}");
        }
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn line(what: &str, ours: &str, other: &str, figure: &str, goal: &str, met: &str) {
    println!("{what:<52} {ours:>19} {other:>34} {figure:>9} {goal:>9}  {met}");
}

/// How busy the machine is with other things: a busy one gives worse figures.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}
