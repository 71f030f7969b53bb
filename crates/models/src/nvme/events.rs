// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Asynchronous events (5.2): what happened, and the requests that wait for it.
//!
//! An event that was reported masks its type until the host reads the log
//! page that it names.

use std::collections::VecDeque;

use device::migration::LoadError;
use device::saved::{Reader, Writer};

use super::spec::{AsyncEvent, LogPage};

/// Requests that may be outstanding (AERL, not zero based).
pub(crate) const LIMIT: usize = 4;

/// Every event that the controller raises.
const KNOWN: [AsyncEvent; 4] = [
    AsyncEvent::INVALID_DOORBELL_REGISTER,
    AsyncEvent::INVALID_DOORBELL_VALUE,
    AsyncEvent::TEMPERATURE,
    AsyncEvent::NAMESPACE_CHANGED,
];

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

    pub(crate) fn save(&self, writer: &mut Writer) {
        writer.u32(self.requests.len() as u32);
        self.requests.iter().for_each(|cid| writer.u16(*cid));
        for events in [&self.waiting, &self.masked] {
            writer.u32(events.len() as u32);
            events.iter().for_each(|event| writer.u32(event.dword()));
        }
    }

    pub(crate) fn load(reader: &mut Reader<'_>) -> Result<Events, LoadError> {
        let requests = (0..reader.count(LIMIT)?).map(|_| reader.u16()).collect::<Result<_, LoadError>>()?;
        let mut events = || -> Result<Vec<AsyncEvent>, LoadError> {
            (0..reader.count(KNOWN.len())?)
                .map(|_| {
                    let dword = reader.u32()?;
                    let known = KNOWN.iter().find(|event| event.dword() == dword);
                    known.copied().ok_or(LoadError::Corrupt("an unknown event"))
                })
                .collect()
        };
        Ok(Events { requests, waiting: events()?, masked: events()? })
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
