// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Asynchronous events (5.2): what happened, and the requests that wait for it.
//!
//! An event that was reported masks its type until the host reads the log
//! page that it names.

use std::collections::VecDeque;

use super::spec::{AsyncEvent, LogPage};

/// Requests that may be outstanding (AERL, not zero based).
pub(crate) const LIMIT: usize = 4;

/// Events and requests, waiting for each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events {
    requests: VecDeque<u16>,
    waiting: Vec<AsyncEvent>,
    masked: Vec<AsyncEvent>,
}

impl Events {
    /// Adds a request with this command id; `false` if there are too many.
    pub(crate) fn request(&mut self, cid: u16) -> bool {
        let room = self.requests.len() < LIMIT;
        if room {
            self.requests.push_back(cid);
        }
        room
    }

    /// Takes a request back (Abort); whether it was there.
    pub(crate) fn abort(&mut self, cid: u16) -> bool {
        let found = self.requests.iter().position(|request| *request == cid);
        found.and_then(|i| self.requests.remove(i)).is_some()
    }

    /// Something happened. An event that waits already is the same event.
    pub(crate) fn raise(&mut self, event: AsyncEvent) {
        if !self.waiting.contains(&event) {
            self.waiting.push(event);
        }
    }

    /// The host has read a log page: its events may be reported again.
    pub(crate) fn unmask(&mut self, log: LogPage) {
        self.masked.retain(|event| event.log != log);
    }

    /// The next request to complete, and with what.
    pub(crate) fn next(&mut self) -> Option<(u16, AsyncEvent)> {
        if self.requests.is_empty() {
            return None;
        }
        let free = |event: &AsyncEvent| !self.masked.iter().any(|masked| masked.kind == event.kind);
        let event = self.waiting.remove(self.waiting.iter().position(free)?);
        self.masked.push(event);
        Some((self.requests.pop_front()?, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_reported_once_until_its_log_is_read() {
        let mut events = Events::default();
        events.raise(AsyncEvent::INVALID_DOORBELL_VALUE);
        events.raise(AsyncEvent::INVALID_DOORBELL_VALUE);
        events.raise(AsyncEvent::INVALID_DOORBELL_REGISTER);
        assert_eq!(events.next(), None);
        for cid in 1..=4 {
            assert!(events.request(cid));
        }
        assert!(!events.request(5));
        assert_eq!(events.next(), Some((1, AsyncEvent::INVALID_DOORBELL_VALUE)));
        assert_eq!(events.next(), None);
        events.raise(AsyncEvent::TEMPERATURE);
        assert_eq!(events.next(), Some((2, AsyncEvent::TEMPERATURE)));
        events.unmask(LogPage::Error);
        assert_eq!(events.next(), Some((3, AsyncEvent::INVALID_DOORBELL_REGISTER)));
        assert!(events.abort(4) && !events.abort(4));
    }
}
