//! Status requests to another generation, and the answers of that generation.
//!
//! This process sends no second request to a generation before the first one is answered. So
//! requests do not pile up at a generation that is busy or hangs. A generation of an older version
//! may not know the request. Once it has said so in a reply, this process does not ask it again.

use super::message::{ASK, Message};
use crate::report::{GenerationState, Report};

/// The state of the status requests to another generation, and the last status report of that
/// generation.
#[derive(Debug, Default)]
pub(crate) struct StatusPoll {
    answer: PollState,
    /// The last status report of the other generation.
    report: Option<Box<Report>>,
}

/// Whether this process expects an answer from the other generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum PollState {
    /// This process expects no answer, because it has sent no request or the last request was
    /// answered.
    #[default]
    None,
    /// This process has sent a request and waits for the answer.
    Due,
    /// No answer will ever come, because the other generation does not know the request.
    Never,
}

impl StatusPoll {
    /// Returns the status request to send now. Returns `None` if an earlier request is not answered
    /// yet, or if the other generation does not know this request.
    pub(super) fn question(&mut self) -> Option<Message> {
        (self.answer == PollState::None).then(|| {
            self.answer = PollState::Due;
            Message::Ask
        })
    }

    /// Returns whether this process has sent a status request that is not answered yet.
    pub(crate) fn is_due(&self) -> bool {
        self.answer == PollState::Due
    }

    /// Returns the last status report of the other generation, if any.
    pub(crate) fn report(&self) -> Option<&Report> {
        self.report.as_deref()
    }

    /// Consumes this value and returns the last status report. Call this when the other generation
    /// will send no more reports.
    pub(super) fn into_report(self) -> Option<Box<Report>> {
        self.report
    }

    /// Stores the report if `message` is an answer to a status request. Otherwise returns the
    /// message as the error.
    pub(super) fn hear(&mut self, message: Message) -> Result<(), Message> {
        if matches!(&message, Message::Unknown { kind } if kind == ASK) {
            self.answer = PollState::Never;
            return Ok(());
        }
        let Message::Report(report) = message else { return Err(message) };
        self.remember(report);
        self.answer = PollState::None;
        Ok(())
    }

    /// Stores a status report of the other generation that a third process received and passed on.
    pub(super) fn remember(&mut self, report: Box<Report>) {
        self.report = Some(report);
    }

    /// Marks the status as unknown, because the other generation now sends its reports to another
    /// process.
    pub(super) fn leave(&mut self) {
        if let Some(report) = &mut self.report {
            report.state = GenerationState::Unknown;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If a generation replies that it does not know the status request, no further request is sent
    /// to it.
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
