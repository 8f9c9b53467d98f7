//! The status requests sent to another generation, and its answers.
//!
//! Only one request is open at a time. A busy generation is not flooded with requests, and a stuck
//! generation just leaves its request unanswered. A generation of an older version that does not
//! know the request says so once, and is not asked again.

use super::message::{ASK, Message};
use crate::report::{GenerationState, Report};

/// What this process knows about the status of another generation.
#[derive(Debug, Default)]
pub(crate) struct StatusPoll {
    answer: Answer,
    /// The last report of that generation.
    report: Option<Box<Report>>,
}

/// Whether an answer is expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Answer {
    /// No request was sent, or it was answered.
    #[default]
    None,
    /// A request was sent.
    Due,
    /// The generation does not know the request.
    Never,
}

impl StatusPoll {
    /// Returns the request to send, unless one is open or the generation does not know it.
    pub(super) fn question(&mut self) -> Option<Message> {
        (self.answer == Answer::None).then(|| {
            self.answer = Answer::Due;
            Message::Ask
        })
    }

    /// Returns whether an answer is expected.
    pub(crate) fn is_due(&self) -> bool {
        self.answer == Answer::Due
    }

    /// Returns the last report.
    pub(crate) fn report(&self) -> Option<&Report> {
        self.report.as_deref()
    }

    /// Returns the last report when no more reports will come.
    pub(super) fn into_report(self) -> Option<Box<Report>> {
        self.report
    }

    /// Stores an answer. Gives the message back if it is not an answer.
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

    /// Stores a report that arrived by another way.
    pub(super) fn remember(&mut self, report: Box<Report>) {
        self.report = Some(report);
    }

    /// Marks the state as unknown, because further reports go to another process.
    pub(super) fn leave(&mut self) {
        if let Some(report) = &mut self.report {
            report.state = GenerationState::Unknown;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generation that does not know the question is not asked again.
    #[test]
    fn only_one_question_is_open_at_a_time() {
        let mut poll = StatusPoll::default();
        assert_eq!(poll.question(), Some(Message::Ask));
        assert!(poll.is_due());
        assert_eq!(poll.question(), None);
        assert!(poll.hear(Message::Stopping).is_err());
        poll.hear(Message::Unknown { kind: ASK.to_owned() }).unwrap();
        assert!(!poll.is_due());
        assert_eq!(poll.question(), None);
    }
}
