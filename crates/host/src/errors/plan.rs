// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors that a lab plans, and what devices do that misbehave.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use caller::Platform;
use device::Board;
use pci::aer::spec::uncorrectable;
use pci::aer::{AerError, RaiseError};
use pci::{Address, Fabric};

use crate::LabError;
use crate::lab::{Behaviour, ErrorSpec, Lab, When};

/// Planned errors that have not happened yet.
#[derive(Debug, Default)]
pub(super) struct Plan {
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    planned: Planned,
    trigger: Trigger,
}

/// What makes an error happen.
#[derive(Debug)]
enum Trigger {
    At(u64),
    Calls(u64),
    /// Set by the device's way to memory.
    Dma(Arc<AtomicBool>),
    Now,
}

/// An error that happens.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) device: Address,
    pub(super) behaviour: Behaviour,
    pub(super) error: AerError,
}

impl Plan {
    /// Checks that what a lab plans can happen.
    pub(super) fn new(lab: &Lab, board: &Board, platform: &dyn Platform) -> Result<Plan, LabError> {
        let mut waiting = Vec::new();
        for spec in &lab.errors {
            let function = board.fabric.function(spec.device);
            let function = function.ok_or_else(|| {
                LabError::new(&spec.place, format!("`device`: there is no function at {}", spec.device))
            })?;
            if !function.spec().port_type.is_express() {
                let message = format!("`device`: {} is a conventional PCI function; it reports no errors", spec.device);
                return Err(LabError::new(&spec.place, message));
            }
            waiting.push(Waiting { planned: planned(spec), trigger: trigger(spec, board, platform)? });
        }
        Ok(Plan { waiting })
    }

    /// When the next one is due by the clock.
    pub(super) fn next(&self) -> Option<u64> {
        let time = |w: &Waiting| if let Trigger::At(time) = w.trigger { Some(time) } else { None };
        self.waiting.iter().filter_map(time).min()
    }

    /// Takes those whose time has come.
    pub(super) fn due(&mut self, now: u64, board: &Board) -> Vec<Planned> {
        let is_due = |w: &mut Waiting| match &w.trigger {
            Trigger::At(time) => *time <= now,
            Trigger::Calls(left) => *left == 0,
            Trigger::Dma(fired) => fired.load(Ordering::Acquire),
            Trigger::Now => true,
        };
        let due: Vec<Planned> = self.waiting.extract_if(.., is_due).map(|w| w.planned).collect();
        due.into_iter().filter(|p| board.fabric.function(p.device).is_some()).collect()
    }

    /// Whether any of them counts calls.
    pub(super) fn counts_calls(&self) -> bool {
        self.waiting.iter().any(|w| matches!(w.trigger, Trigger::Calls(_)))
    }

    /// A call was made; whether an error is due for it.
    pub(super) fn called(&mut self, address: Address) -> bool {
        let mut due = false;
        for waiting in &mut self.waiting {
            if let Trigger::Calls(left) = &mut waiting.trigger
                && waiting.planned.device == address
            {
                *left = left.saturating_sub(1);
                due |= *left == 0;
            }
        }
        due
    }
}

fn planned(spec: &ErrorSpec) -> Planned {
    let ErrorSpec { device, correctable, uncorrectable, header, advisory, behaviour, .. } = *spec;
    Planned { device, behaviour, error: AerError { correctable, uncorrectable, header, advisory } }
}

fn trigger(spec: &ErrorSpec, board: &Board, platform: &dyn Platform) -> Result<Trigger, LabError> {
    let (access, count) = match spec.when {
        When::At(time) => return Ok(Trigger::At(time)),
        When::Calls(0) | When::Reads(0) | When::Writes(0) => return Ok(Trigger::Now),
        When::Calls(count) => return Ok(Trigger::Calls(count)),
        When::Reads(count) => (iommu::Access::Read, count),
        When::Writes(count) => (iommu::Access::Write, count),
    };
    let endpoint = board.endpoint(spec.device).ok_or_else(|| {
        LabError::new(&spec.place, format!("{} is a port; only devices read and write memory", spec.device))
    })?;
    let fired = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&fired);
    let wake = platform.waker();
    // The device stops in its tracks; the host hears of it by its waker.
    let stops = matches!(spec.behaviour, Behaviour::Timeout | Behaviour::LinkDown | Behaviour::Remove);
    let goes_off = move || {
        flag.store(true, Ordering::Release);
        wake();
    };
    endpoint.requester.set_trap(access, count, stops, Box::new(goes_off));
    Ok(Trigger::Dma(fired))
}

/// What a behaviour does to the fabric, and who reports it.
pub(super) fn misbehave(
    fabric: &mut Fabric,
    address: Address,
    behaviour: Behaviour,
    error: &AerError,
) -> Result<(), RaiseError> {
    let port = fabric.parent(address);
    let of = |bit| AerError { uncorrectable: bit, header: error.header, ..AerError::default() };
    match (behaviour, port) {
        (Behaviour::Report, _) => {}
        (Behaviour::Poison, _) => {
            fabric.raise(address, &of(uncorrectable::POISONED))?;
        }
        (Behaviour::Timeout, port) => {
            fabric.hang(address);
            // Who waits for the completion is the port for the processor's
            // loads. A device on a root bus hangs unreported.
            if let Some(port) = port {
                fabric.raise(port, &of(uncorrectable::COMPLETION_TIMEOUT))?;
            }
        }
        (Behaviour::LinkDown, Some(port)) => fabric.surprise_down(port, true),
        (Behaviour::Remove, Some(port)) => fabric.surprise_removal(port),
        (Behaviour::LinkDown | Behaviour::Remove, None) => fabric.hang(address),
    }
    if error.correctable | error.uncorrectable != 0 {
        fabric.raise(address, error)?;
    }
    Ok(())
}
