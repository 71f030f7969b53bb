// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keys of a device that migrates, and what goes wrong when it does.

use std::str::FromStr;

use device::migration::{Failure, Migration, P2pStop, Stage};

use super::LabError;
use super::section::{Millis, Section, Size, Switch};

/// Which states a device has, `migration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Off,
    On { p2p: bool, pre_copy: bool },
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Protocol, String> {
        let on = |p2p, pre_copy| Ok(Protocol::On { p2p, pre_copy });
        match text {
            "off" => Ok(Protocol::Off),
            "stop-copy" => on(false, false),
            "p2p" => on(true, false),
            "pre-copy" => on(false, true),
            "pre-copy-p2p" => on(true, true),
            _ => Err(format!("`{text}` is none of off, stop-copy, p2p, pre-copy and pre-copy-p2p")),
        }
    }
}

/// How P2P is stopped, `p2p_stop`.
struct Stop(P2pStop);

impl FromStr for Stop {
    type Err = String;

    fn from_str(text: &str) -> Result<Stop, String> {
        match text {
            "quiesce" => Ok(Stop(P2pStop::Quiesce)),
            "bus-master" => Ok(Stop(P2pStop::BusMaster)),
            _ => Err(format!("`{text}` is neither quiesce nor bus-master")),
        }
    }
}

/// What goes wrong, `migration_fails`: items separated by `;` or `+`.
pub(crate) struct Failures(pub(crate) Vec<Failure>);

const STATES: [&str; 8] =
    ["ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"];

impl FromStr for Failures {
    type Err = String;

    fn from_str(text: &str) -> Result<Failures, String> {
        let items = text.split([';', '+']).map(str::trim).filter(|item| !item.is_empty());
        items.map(failure).collect::<Result<_, String>>().map(Failures)
    }
}

fn failure(item: &str) -> Result<Failure, String> {
    let wrong = || {
        format!(
            "`{item}` is no failure; write FROM>TO:before, :middle or :after (and :N times, or :always), \
             stream-breaks:BYTE, stream-ends:BYTE, stream-slow:MS, refuses or logging-lost"
        )
    };
    let mut parts = item.split(':');
    let (what, first, second) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    if parts.next().is_some() {
        return Err(wrong());
    }
    let number = || first.and_then(|text| text.parse().ok()).map(|Size(bytes)| bytes).ok_or_else(wrong);
    if let Some((from, to)) = what.split_once('>') {
        let state = |name: &str| STATES.iter().position(|state| *state == name).ok_or_else(wrong);
        let at = match first {
            Some("before") => Stage::Before,
            Some("middle") => Stage::Middle,
            Some("after") => Stage::After,
            _ => return Err(wrong()),
        };
        let times = match second {
            None => 1,
            Some("always") => u32::MAX,
            Some(times) => times.parse().map_err(|_| wrong())?,
        };
        return Ok(Failure::Arc { from: state(from)? as u32, to: state(to)? as u32, at, times });
    }
    match (what, second) {
        ("stream-breaks", None) => number().map(Failure::StreamBreaks),
        ("stream-ends", None) => number().map(Failure::StreamEnds),
        ("stream-slow", None) => {
            let Millis(time) = first.and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
            Ok(Failure::StreamSlow(time))
        }
        ("refuses", None) if first.is_none() => Ok(Failure::Refuses),
        ("logging-lost", None) if first.is_none() => Ok(Failure::LoggingLost),
        _ => Err(wrong()),
    }
}

/// The keys of a device; `None` if it does not migrate, as by default.
pub(super) fn decode(section: &mut Section) -> Result<Option<Migration>, LabError> {
    let default = Migration::default();
    let protocol = section.take_or("migration", Protocol::Off)?;
    let place = section.place_of("state_size");
    let Size(state_size) = section.take_or("state_size", Size(0))?;
    if state_size > 64 << 30 {
        return Err(LabError::new(&place, "`state_size` is at most 64G"));
    }
    let migration = Migration {
        dma_logging: section.take_or("dma_logging", Switch(default.dma_logging))?.0,
        p2p_stop: section.take_or("p2p_stop", Stop(default.p2p_stop))?.0,
        state_size,
        state_dirty_rate: section.take_or("state_dirty_rate", Size(0))?.0,
        reinit_after: section.take("reinit_after")?.map(|Size(bytes)| bytes),
        failures: section.take_or("migration_fails", Failures(Vec::new()))?.0,
        ..default.clone()
    };
    match protocol {
        Protocol::On { p2p, pre_copy } => Ok(Some(Migration { p2p, pre_copy, ..migration })),
        Protocol::Off if migration == default => Ok(None),
        Protocol::Off => {
            Err(LabError::new(&section.place, "keys of a migrating device need `migration`, for example pre-copy-p2p"))
        }
    }
}

/// A failure as the lab writes it.
#[must_use]
pub(crate) fn describe(failure: &Failure) -> String {
    let name = |state: u32| STATES.get(state as usize).copied().unwrap_or("?");
    match failure {
        Failure::Arc { from, to, at, times } => {
            let at = match at {
                Stage::Before => "before",
                Stage::Middle => "middle",
                Stage::After => "after",
            };
            let times = if *times == u32::MAX { "always".to_owned() } else { times.to_string() };
            format!("{}>{}:{at}:{times}", name(*from), name(*to))
        }
        Failure::StreamBreaks(at) => format!("stream-breaks:{at}"),
        Failure::StreamEnds(at) => format!("stream-ends:{at}"),
        Failure::StreamSlow(time) => format!("stream-slow:{}", time / 1_000_000),
        Failure::Refuses => "refuses".to_owned(),
        Failure::LoggingLost => "logging-lost".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MIG-079, MIG-080, MIG-081, MIG-082, MIG-083, MIG-084, MIG-085: what each
    /// of Linux's drivers offers can be said.
    #[test]
    fn what_linux_s_drivers_offer() {
        for (driver, keys, offers) in [
            ("mlx5", "migration=pre-copy-p2p", Some((true, true, true))),
            ("hisi_acc", "migration=pre-copy,dma_logging=off", Some((false, true, false))),
            ("qat", "migration=pre-copy-p2p,dma_logging=off", Some((true, true, false))),
            ("pds", "migration=p2p", Some((true, false, true))),
            ("virtio", "migration=pre-copy-p2p,dma_logging=off", Some((true, true, false))),
            ("xe", "migration=p2p,dma_logging=off", Some((true, false, false))),
            ("nvgrace-gpu", "migration=off", None),
        ] {
            let mut lab = crate::Lab::default();
            lab.add_device(&format!("nvme,{keys}")).unwrap_or_else(|e| panic!("{driver}: {e}"));
            let spec = lab.devices.first().and_then(|device| device.migration.clone());
            assert_eq!(spec.map(|spec| (spec.p2p, spec.pre_copy, spec.dma_logging)), offers, "{driver}");
        }
        for model in ["dsa", "ioat"] {
            let mut lab = crate::Lab::default();
            let keys = format!("{model},migration=pre-copy-p2p,state_size=1M");
            assert_eq!(lab.add_device(&keys).map_err(|e| e.to_string()), Ok(()), "{model}");
        }
        for wrong in ["state_size=1M", "migration=on", "migration=p2p,p2p_stop=never", "migration=p2p,state_size=65G"] {
            assert!(crate::Lab::default().add_device(&format!("nvme,{wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn failures_are_written_and_read() {
        let text = "RUNNING>PRE_COPY:before; STOP>STOP_COPY:middle:3+RESUMING>STOP:after:always;\
                    stream-breaks:4K;stream-ends:100;stream-slow:20;refuses;logging-lost";
        let Failures(failures) = text.parse().unwrap_or_else(|e: String| panic!("{e}"));
        assert_eq!(failures.len(), 8);
        assert_eq!(failures[1], Failure::Arc { from: 1, to: 3, at: Stage::Middle, times: 3 });
        assert_eq!(failures[3], Failure::StreamBreaks(4096));
        assert_eq!(failures[5], Failure::StreamSlow(20_000_000));
        let again: Vec<String> = failures.iter().map(describe).collect();
        assert_eq!(again.join("+").parse::<Failures>().map(|f| f.0), Ok(failures));
        for bad in ["RUNNING", "RUNNING>NOWHERE:before", "RUNNING>STOP", "RUNNING>STOP:late", "refuses:1", "x:1:2:3"] {
            assert!(bad.parse::<Failures>().is_err(), "{bad}");
        }
    }
}
