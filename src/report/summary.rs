//! The status as one line of text, as `handoffd status` and the log print it.

use std::fmt;

use super::{GenerationState, LastHandoff, Report, Status};
use crate::text::cut_line;

/// The maximum length in bytes of the status text of a program, as a status report shows it.
const LONGEST_STATUS: usize = 200;

/// Writes the status of all generations as one line, such as `generation 7 serving, connections:
/// 1200; generation 6 draining, connections left: 14, seconds left: 21`.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        let active = self.generations.iter().filter(|report| report.generation == self.serving);
        let others = self.generations.iter().filter(|report| report.generation != self.serving);
        for report in active.chain(others) {
            write!(f, "{between}{report}")?;
            between = "; ";
        }
        match &self.last_handoff {
            Some(LastHandoff { successor, reason: Some(reason), .. }) => {
                write!(f, "; the handoff to generation {successor} failed: {reason}")
            }
            _ => Ok(()),
        }
    }
}

/// Writes the state of one generation, such as `generation 7 serving, connections: 1200` or
/// `generation 6 draining, connections left: 14, seconds left: 21`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, drains) = match self.state {
            GenerationState::Starting => ("starting", false),
            GenerationState::Probation => ("on probation", false),
            GenerationState::Serving | GenerationState::HandingOff | GenerationState::Baking => {
                ("serving", false)
            }
            GenerationState::Retiring => ("draining", true),
            GenerationState::Stopping => ("stopping", true),
            GenerationState::Stopped => ("stopped", false),
            GenerationState::Unknown => ("not responding", false),
        };
        write!(f, "generation {} {verb}", self.generation)?;
        match self.connections {
            Some(connections) if drains => write!(f, ", connections left: {}", connections.open)?,
            Some(connections) if verb == "serving" => {
                write!(f, ", connections: {}", connections.open)?
            }
            _ => {}
        }
        let said = self.programs.iter().find_map(|program| program.status.as_deref());
        if let Some(said) = said.filter(|_| verb == "serving") {
            write!(f, ", program: {}", cut_line(said, LONGEST_STATUS))?;
        }
        match self.drain_left_ms {
            Some(left) if drains => write!(f, ", seconds left: {}", left.div_ceil(1000)),
            _ => Ok(()),
        }
    }
}
