// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors, recovery and resets: multiples of a bare trapped call.
//!
//! Recovery runs in a lab in virtual time, so the times are what the rules
//! cost; the waits that Linux makes (a tenth of a second for a link) are not in
//! them. The hot reset is a program's call under `vfuse run`, with real
//! mappings.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use caller::{FileId, Platform, Reply};
use host::tree::Node;
use host::{Host, Lab};
use models::testing::CountedEvent;
use pci::Address;
use pci::aer::Injection;
use pci::aer::spec::uncorrectable;
use sim::{BASE, Client as Program, Fd, SimPlatform, SimStorage};

use crate::client::{self, CHECK, HOT_RESET, RESETS};
use crate::floor;
use crate::process::{Client, under_vfuse_as};
use crate::table::{Figures, Goal, Table};
use crate::timing::in_turn;

const ROUNDS: usize = 51;
const ERRORS: u64 = 1000;
/// `SET_IRQS` with the ERR eventfd.
const SET_IRQS: u32 = 0x3b6e;

/// Rows of recovery.
pub(crate) fn rows(table: &mut Table) {
    let bare = floor::start(client::FLOOR, false).map(RefCell::new);
    let call = || {
        let bare = bare.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        bare.borrow_mut().ask(CHECK, 200)
    };
    table.row("non-fatal error → user's eventfd / bare call", Goal::None, || {
        let mut world = World::new(&pair(""))?;
        let event = world.user("0000:01:00.0")?;
        let ours = || {
            let start = Instant::now();
            world.inject("01:00.0", uncorrectable::COMPLETER_ABORT)?;
            let time = start.elapsed();
            ensure!(event.take() == 1, "the user was not told once");
            Ok(time.as_nanos() as f64)
        };
        Ok(Figures::times(in_turn(ROUNDS, ours, call)?))
    });
    table.row("fatal error, 2 functions recovered / bare call", Goal::None, || {
        let mut world = World::new(&pair(""))?;
        let (a, b) = (world.user("0000:01:00.0")?, world.user("0000:01:00.1")?);
        let ours = || {
            let start = Instant::now();
            world.inject("01:00.0", uncorrectable::MALFORMED)?;
            world.settle()?;
            let time = start.elapsed();
            ensure!((a.take(), b.take()) == (1, 1), "the users were not told once");
            Ok(time.as_nanos() as f64)
        };
        Ok(Figures::times(in_turn(ROUNDS, ours, call)?))
    });
    table.row("  the same, a read blocked and released", Goal::None, || {
        let mut world = World::new(&format!("[vfio]\nerror_recovery = \"block\"\n{}", pair("")))?;
        world.user("0000:01:00.0")?;
        world.user("0000:01:00.1")?;
        let ours = || {
            let start = Instant::now();
            world.inject("01:00.0", uncorrectable::MALFORMED)?;
            world.blocked_read()?;
            world.settle()?;
            ensure!(world.host.take_woken().len() == 1, "the read was not released");
            Ok(start.elapsed().as_nanos() as f64)
        };
        Ok(Figures::times(in_turn(ROUNDS, ours, call)?))
    });
    table.row("hot reset, 8 functions, 64 mappings / bare call", Goal::None, || {
        let lab = tempfile(&card())?;
        let mut client = Client::start(under_vfuse_as(RESETS, ["--lab", &lab.display().to_string()])?)?;
        std::fs::remove_file(lab)?;
        Ok(Figures::times(in_turn(ROUNDS, || client.ask(HOT_RESET, 5), call)?))
    });
    let lab = |switches| World::new(&switches_of(switches));
    table.row("1,000 errors, 256 functions / the same of 32", Goal::AtMost(1.5, ""), || {
        let (mut whole, mut one) = (lab(8)?, lab(1)?);
        in_turn(5, || whole.storm(8), || one.storm(1)).map(Figures::times)
    });
    table.row("an error of 32 in scope / of 8, each function", Goal::AtMost(1.5, ""), || {
        let (mut many, mut few) = (lab(8)?, lab(8)?);
        let wide = || many.errors((0..8).map(|n| Address::new(0, 0, n + 1, 0)), 32 + 5);
        let narrow = || few.errors((0..8).map(|n| Address::new(0, 8 * n + 3, 0, 0)), 8);
        in_turn(21, wide, narrow).map(Figures::times)
    });
}

fn pair(more: &str) -> String {
    (0..2)
        .map(|n| format!("[[device]]\nmodel = \"nvme\"\nsize = \"1M\"\naddr = \"01:00.{n}\"\nacs = true\n{more}"))
        .collect()
}

/// Eight functions that are reset together, in one group.
fn card() -> String {
    (0..8)
        .map(|n| format!("[[device]]\nmodel = \"nvme\"\nsize = \"1M\"\naddr = \"01:00.{n}\"\nresets = \"none\"\n"))
        .collect()
}

/// Switches with four ports and eight functions below each: 32 functions.
fn switches_of(count: u8) -> String {
    let mut lab = String::new();
    for n in 0..count {
        let bus = 8 * n + 1;
        let mut port = |addr: String, kind: &str, to: u8| {
            lab += &format!("[[port]]\naddr = \"{addr}\"\nkind = \"{kind}\"\nbus = {to}\n");
        };
        port(format!("00:{:02x}.0", n + 1), "root", bus);
        port(format!("{bus:02x}:00.0"), "upstream", bus + 1);
        for slot in 0..4 {
            port(format!("{:02x}:{slot:02x}.0", bus + 1), "downstream", bus + 2 + slot);
        }
        for slot in 0..4 {
            for function in 0..8 {
                lab += &format!(
                    "[[device]]\nmodel = \"nvme\"\nsize = \"1M\"\naddr = \"{:02x}:00.{function}\"\n",
                    bus + 2 + slot
                );
            }
        }
    }
    lab
}

fn tempfile(text: &str) -> Result<std::path::PathBuf> {
    let path = std::env::temp_dir().join(format!("vfuse-bench-{}.toml", std::process::id()));
    std::fs::write(&path, text)?;
    Ok(path)
}

/// A lab in virtual time, with a program.
struct World {
    host: Host,
    platform: Arc<SimPlatform>,
    program: Program,
    container: Option<i32>,
    device: Option<FileId>,
    random: u64,
}

impl World {
    fn new(text: &str) -> Result<World> {
        let platform = SimPlatform::new(1);
        let host = Host::new(Lab::parse("bench", text)?, Arc::clone(&platform) as _, Box::new(SimStorage))?;
        Ok(World { host, platform, program: Program::new(1), container: None, device: None, random: 1 })
    }

    fn ioctl(&mut self, file: FileId, request: u32, arg: u64) -> Result<Reply> {
        self.host.ioctl(file, request, arg, &self.program).map_err(|errno| anyhow!("{request:#x}: {errno:?}"))
    }

    /// Opens a device by its group, with an eventfd for errors.
    fn user(&mut self, address: &str) -> Result<Arc<CountedEvent>> {
        let number = self.host.functions().into_iter().find(|f| f.address == address).and_then(|f| f.group);
        let node = Node::VfioGroup(number.context("no group")?);
        let group = self.host.open(node, &self.program).map_err(|errno| anyhow!("{errno:?}"))?;
        let first = self.container.is_none();
        let fd = match self.container {
            Some(fd) => fd,
            None => {
                let file = self.host.open(Node::VfioContainer, &self.program).map_err(|errno| anyhow!("{errno:?}"))?;
                self.program.install(Fd::File(file))
            }
        };
        self.container = Some(fd);
        self.program.set(BASE, &fd.to_le_bytes());
        self.ioctl(group, 0x3b68, BASE)?;
        if first {
            let container = self.program.file_id(fd).context("no container")?;
            self.ioctl(container, 0x3b66, 3)?;
        }
        self.program.set(BASE, format!("{address}\0").as_bytes());
        let Reply::NewFile(device) = self.ioctl(group, 0x3b6a, BASE)? else { anyhow::bail!("no device") };
        self.device = Some(device);
        let event = Arc::new(CountedEvent::default());
        let fd = self.program.install(Fd::Event(Arc::clone(&event)));
        let words = [24u32, 4 | 32, 3, 0, 1, fd as u32];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.program.set(BASE, &bytes);
        self.ioctl(device, SET_IRQS, BASE)?;
        Ok(event)
    }

    /// A read of configuration space that has to wait.
    fn blocked_read(&mut self) -> Result<()> {
        let device = self.device.context("no device")?;
        let mut info = [0u8; 32];
        info[..4].copy_from_slice(&32u32.to_le_bytes());
        info[8] = 7;
        self.program.set(BASE, &info);
        self.ioctl(device, 0x3b6c, BASE)?;
        self.program.get(BASE, &mut info);
        let offset = info.last_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let reply = self.host.read(device, offset, BASE, 4, &self.program);
        ensure!(matches!(reply, Ok(Reply::Parked(_))), "the read does not wait: {reply:?}");
        Ok(())
    }

    fn inject(&mut self, address: &str, uncorrectable: u32) -> Result<()> {
        self.inject_at(address.parse().map_err(|e| anyhow!("{e}"))?, uncorrectable)
    }

    fn inject_at(&mut self, address: Address, uncorrectable: u32) -> Result<()> {
        let injection = Injection { uncorrectable, ..Injection::default() };
        self.host.inject(&[injection], Some(address))?;
        Ok(())
    }

    /// Lets the time pass that recovery takes.
    fn settle(&mut self) -> Result<()> {
        for _ in 0..100_000 {
            let Some(deadline) = self.host.deadline() else { break };
            self.platform.advance(deadline.saturating_sub(self.platform.now()));
            self.host.elapse();
        }
        ensure!(self.host.is_calm(), "recovery does not end");
        Ok(())
    }

    /// 1,000 errors of random functions, every tenth fatal; ns each.
    fn storm(&mut self, switches: u64) -> Result<f64> {
        let start = Instant::now();
        for n in 0..ERRORS {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pick = self.random >> 33;
            let bus = 8 * (pick % switches) + 3 + pick / 8 % 4;
            let error = if n % 10 == 0 { uncorrectable::MALFORMED } else { uncorrectable::COMPLETER_ABORT };
            self.inject_at(Address::new(0, bus as u8, 0, (pick / 32 % 8) as u8), error)?;
            self.settle()?;
        }
        Ok(start.elapsed().as_nanos() as f64 / ERRORS as f64)
    }

    /// A fatal error at each of these; ns for each function that it concerns.
    fn errors(&mut self, at: impl Iterator<Item = Address>, scope: u32) -> Result<f64> {
        let start = Instant::now();
        let mut count = 0;
        for address in at {
            self.inject_at(address, uncorrectable::MALFORMED)?;
            self.settle()?;
            count += scope;
        }
        Ok(start.elapsed().as_nanos() as f64 / f64::from(count))
    }
}
