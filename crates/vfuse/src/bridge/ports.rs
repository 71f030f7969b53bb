// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the bridge has heard of each device, and when a guest's port is to
//! report an error.
//!
//! It does once the host has recovered, so that the two do not reset the same
//! link at the same time: the guest then finds a device that answers.

use std::collections::BTreeMap;

use pci::Address;
use serde_json::Value;

/// Ports of a guest with their devices.
#[derive(Debug, Default)]
pub(super) struct Ports(BTreeMap<String, BTreeMap<Address, State>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// No error is under way.
    #[default]
    Calm,
    /// The host recovers.
    Told(Error),
    /// The host has recovered.
    Recovered(Error),
}

/// How bad it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Error {
    /// The guest has to reset the device: the error was fatal, or the host has
    /// reset the device for somebody else's sake (ERR-086).
    reset: bool,
}

/// What an event leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// This port is to report an error; these devices are answered for.
    Inject {
        /// Id in the guest.
        port: String,
        /// Fatal, so that the guest resets the link.
        fatal: bool,
        /// Of the lab.
        devices: Vec<Address>,
    },
    /// QEMU was told by the program's own eventfd.
    Told {
        /// Of the lab.
        device: Address,
        /// `fatal`, `failed`, …
        kind: String,
    },
}

impl Ports {
    /// A device behind a port of the guest.
    pub(super) fn add(&mut self, port: &str, device: Address) {
        self.0.entry(port.to_owned()).or_default().insert(device, State::Calm);
    }

    /// Takes an event of the lab.
    pub(super) fn event(&mut self, event: &Value) -> Option<Action> {
        let text = |key: &str| event.get(key).and_then(Value::as_str).unwrap_or_default();
        let device: Address = text("device").parse().ok()?;
        let (port, devices) = self.0.iter_mut().find(|(_, devices)| devices.contains_key(&device))?;
        let state = devices.get_mut(&device)?;
        match (text("event"), *state) {
            ("aer.notice", _) if text("by") == "taker" => {
                *state = State::Told(Error { reset: text("kind") == "fatal" });
            }
            ("aer.notice", _) => {
                *state = State::Calm;
                return Some(Action::Told { device, kind: text("kind").to_owned() });
            }
            ("aer.reset", State::Told(_)) => *state = State::Told(Error { reset: true }),
            ("aer.uevent", State::Told(error)) if text("kind") == "ERROR_EVENT=SUCCESSFUL_RECOVERY" => {
                *state = State::Recovered(error);
            }
            _ => return None,
        }
        if devices.values().any(|state| matches!(state, State::Told(_))) {
            return None;
        }
        let mut fatal = false;
        let mut answered = Vec::new();
        for (device, state) in devices {
            if let State::Recovered(error) = std::mem::take(state) {
                fatal |= error.reset;
                answered.push(*device);
            }
        }
        (!answered.is_empty()).then(|| Action::Inject { port: port.clone(), fatal, devices: answered })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const A: &str = "0000:01:00.0";
    const B: &str = "0000:01:00.1";

    fn ports() -> Ports {
        let mut ports = Ports::default();
        ports.add("rp0", A.parse().unwrap());
        ports.add("rp0", B.parse().unwrap());
        ports.add("rp1", "0000:02:00.0".parse().unwrap());
        ports
    }

    fn notice(device: &str, kind: &str, by: &str) -> Value {
        json!({ "event": "aer.notice", "device": device, "kind": kind, "by": by })
    }

    fn recovered(device: &str) -> Value {
        json!({ "event": "aer.uevent", "device": device, "kind": "ERROR_EVENT=SUCCESSFUL_RECOVERY" })
    }

    fn inject(fatal: bool) -> Option<Action> {
        let devices = vec![A.parse().unwrap(), B.parse().unwrap()];
        Some(Action::Inject { port: "rp0".into(), fatal, devices })
    }

    /// ERR-087: one error in the guest for both functions, when the last has
    /// recovered.
    #[test]
    fn one_error_for_a_scope() {
        let mut ports = ports();
        for event in [notice(A, "non-fatal", "taker"), notice(B, "non-fatal", "taker"), recovered(A)] {
            assert_eq!(ports.event(&event), None);
        }
        assert_eq!(ports.event(&recovered(B)), inject(false));
        assert_eq!(ports.event(&recovered(B)), None, "no error was told");
    }

    /// ERR-086: a reset behind the guest's back is one that the guest has to
    /// make its own.
    #[test]
    fn a_passive_reset_is_fatal_to_the_guest() {
        let mut ports = ports();
        for device in [A, B] {
            assert_eq!(ports.event(&notice(device, "non-fatal", "taker")), None);
            assert_eq!(ports.event(&json!({ "event": "aer.reset", "device": device })), None);
        }
        assert_eq!(ports.event(&recovered(A)), None);
        assert_eq!(ports.event(&recovered(B)), inject(true));
    }

    /// ERR-030: QEMU hears of failed recovery itself.
    #[test]
    fn failed_recovery_is_not_injected() {
        let mut ports = ports();
        assert_eq!(ports.event(&notice(A, "non-fatal", "taker")), None);
        let told = Action::Told { device: A.parse().unwrap(), kind: "failed".into() };
        assert_eq!(ports.event(&notice(A, "failed", "err")), Some(told));
        assert_eq!(ports.event(&recovered(A)), None);
    }

    #[test]
    fn events_of_others_are_passed_over() {
        let mut ports = ports();
        for event in [json!({ "event": "aer.notice" }), json!([1]), notice("0000:09:00.0", "fatal", "taker")] {
            assert_eq!(ports.event(&event), None);
        }
    }
}
