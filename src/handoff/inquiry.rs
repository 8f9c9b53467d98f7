//! Remembers what a neighbour was asked of how it stands, and what it has answered.
//!
//! One question at a time, and one answer to each: nobody is flooded, and whoever is stuck is
//! simply not heard. A neighbour of a version that does not know the question says so once, and is
//! not asked again.

use super::message::{ASK, Message};
use crate::report::{Report, Standing};

/// What is known of one neighbour.
#[derive(Debug, Default)]
pub(crate) struct Inquiry {
    answer: Answer,
    /// What it has said last.
    report: Option<Box<Report>>,
}

/// Whether an answer is owed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Answer {
    /// Nothing was asked, or it was answered.
    #[default]
    None,
    /// It was asked.
    Due,
    /// It does not know how.
    Never,
}

impl Inquiry {
    /// The question, unless it is open already or would be in vain.
    pub(super) fn question(&mut self) -> Option<Message> {
        (self.answer == Answer::None).then(|| {
            self.answer = Answer::Due;
            Message::Ask
        })
    }

    /// Whether an answer is owed.
    pub(crate) fn is_due(&self) -> bool {
        self.answer == Answer::Due
    }

    /// What it has said last.
    pub(crate) fn report(&self) -> Option<&Report> {
        self.report.as_deref()
    }

    /// The same, when nothing more will come.
    pub(super) fn into_report(self) -> Option<Box<Report>> {
        self.report
    }

    /// Takes an answer; gives back what is none.
    pub(super) fn hear(&mut self, message: Message) -> Result<(), Message> {
        if matches!(&message, Message::Unknown { kind } if kind == ASK) {
            self.answer = Answer::Never;
            return Ok(());
        }
        let Message::Report(report) = message else { return Err(message) };
        self.remember(report);
        self.answer = Answer::None;
        Ok(())
    }

    /// Takes what somebody else was told.
    pub(super) fn remember(&mut self, report: Box<Report>) {
        self.report = Some(report);
    }

    /// From now on somebody else is told.
    pub(super) fn leave(&mut self) {
        if let Some(report) = &mut self.report {
            report.state = Standing::Unknown;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_question_is_open_at_a_time_and_none_in_vain() {
        let mut inquiry = Inquiry::default();
        assert_eq!(inquiry.question(), Some(Message::Ask));
        assert!(inquiry.is_due());
        assert_eq!(inquiry.question(), None);
        assert!(inquiry.hear(Message::Stopping).is_err());
        inquiry.hear(Message::Unknown { kind: ASK.to_owned() }).unwrap();
        assert!(!inquiry.is_due());
        assert_eq!(inquiry.question(), None);
    }
}
