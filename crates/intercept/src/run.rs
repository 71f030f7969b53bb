// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs a program from its start to its end.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Resource, Signal, WaitOptions};

use crate::events::Events;
use crate::farm::Farm;
use crate::files::Files;
use crate::filter::{Choice, assemble};
use crate::launch::{Launched, launch};
use crate::mounts::{Plan, plan};
use crate::parked::Parked;
use crate::preload::{self, Preload};
use crate::processes::Processes;
use crate::program::Program;
use crate::scratch::Scratch;
use crate::side::{Side, Verdict};
use crate::signals::{Signals, default_dispositions};
use crate::state::State;
use crate::supervisor::Shared;
use crate::{Error, Isolation, Kernel, Options, Tree, Waker};

/// Runs a program in front of `kernel` and returns when it and all its
/// descendants are gone, with the status of the program itself.
///
/// The program has the caller's terminal, process group, working directory,
/// environment and open standard streams. It is killed if the calling thread
/// dies.
pub fn run(mut options: Options, kernel: Box<dyn Kernel>) -> Result<ExitStatus, Error> {
    let preload = Preload::new(&mut options)?;
    let program = Program::new(&options)?;
    if preload.is_some() {
        preload::check(&program.candidates, &program.name)?;
    }
    let signals = match options.whole_process {
        true => Some(Signals::catch().map_err(Error::os("catching signals"))?),
        false => None,
    };
    let mut dispositions = default_dispositions();
    dispositions.extend(signals.iter().flat_map(Signals::dispositions));

    let queues = crate::queues::range();
    let tree = kernel.tree();
    let generation = kernel.tree_generation();
    let mut started = None;
    let ways: &[Isolation] = match options.isolation {
        Isolation::Auto => &[Isolation::Namespaces, Isolation::Userns, Isolation::Paths],
        Isolation::Namespaces => &[Isolation::Namespaces],
        Isolation::Userns => &[Isolation::Userns],
        Isolation::Paths => &[Isolation::Paths],
    };
    for (number, way) in ways.iter().enumerate() {
        match start(&program, *way, &tree, &options, &queues, &dispositions) {
            Ok(it) => {
                started = Some((*way, it));
                break;
            }
            Err(error @ Error::Isolation { .. }) if number + 1 < ways.len() => {
                tracing::debug!(target: "vfuse::run", isolation = way.name(), %error, "not this way");
            }
            Err(error) => return Err(error),
        }
    }
    let Some((isolation, started)) = started else { return Err(Error::Nested) };
    tracing::info!(target: "vfuse::run", isolation = isolation.name(), pid = started.launched.pid.as_raw_nonzero().get(), "started");

    let mut main = Killed(Some(started.launched.pid));
    raise_descriptor_limit();
    let ends = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Error::os("epoll_create"))?);
    let nudge = Waker::new().map_err(|source| Error::Os { what: "making an eventfd", source })?;
    let Launched { pid, pidfd, listener, socket } = started.launched;
    let hold = options.hold.take().unwrap_or_default();
    hold.serve(pid.as_raw_nonzero().get(), nudge.clone());
    let shared = Shared {
        listener,
        hold: hold.clone(),
        state: Mutex::new(State {
            kernel,
            files: Files::new().map_err(Error::os("inotify_init"))?,
            processes: Processes::new(ends.clone()),
            events: Events::default(),
            pinner: Arc::new(sys::pin::Pinner::new()),
            queues: queues.clone(),
            farm: started.farm,
            attributes: HashMap::new(),
            directories: HashMap::new(),
            composed: started.composed,
            isolation,
            farm_path: started.scratch.as_ref().and_then(|s| s.path().to_str()).unwrap_or_default().to_owned(),
            sysfs_writable: options.sysfs_writable,
            messages: Default::default(),
            process_figures: options.process_figures,
            namespaces: namespaces_of(pid, isolation),
            parked: Parked::default(),
            nudge: nudge.clone(),
            hold,
            generation,
        }),
        over: AtomicBool::new(false),
        served: AtomicBool::new(false),
    };
    let verdict = std::thread::scope(|scope| {
        let side = Side {
            shared: &shared,
            pid,
            pidfd,
            socket: Some(socket),
            ends,
            signals,
            waker: options.waker.clone(),
            events: options.events.clone(),
            nudge,
            server: this_thread(),
        };
        let builder = std::thread::Builder::new().name("vfuse-side".into());
        let side = builder
            .spawn_scoped(scope, || side.work())
            .map_err(|source| Error::Os { what: "starting a thread", source })?;
        shared.serve();
        shared.served.store(true, Ordering::Release);
        match side.join() {
            Ok(Ok(verdict)) => Ok(verdict),
            Ok(Err(errno)) => Err(Error::os("waiting for events")(errno)),
            Err(_) => Err(Error::os("waiting for events")(rustix::io::Errno::CANCELED)),
        }
    });
    let Verdict { status, exec_error } = verdict?;
    main.0 = None;
    let mut state = shared.state.into_inner().unwrap_or_else(|e| e.into_inner());
    state.release_all();
    drop((started.scratch, preload));
    match (exec_error, status) {
        (Some(errno), _) => Err(program.error(errno)),
        (None, Some(status)) => Ok(status),
        (None, None) => Err(Error::os("waiting for the program")(rustix::io::Errno::CHILD)),
    }
}

/// A program that waits for the answer to its `execve`.
struct Started {
    launched: Launched,
    farm: Farm,
    scratch: Option<Scratch>,
    composed: Vec<String>,
}

fn start(
    program: &Program,
    isolation: Isolation,
    tree: &Tree,
    options: &Options,
    queues: &Range<i32>,
    dispositions: &crate::launch::Dispositions,
) -> Result<Started, Error> {
    let paths = isolation == Isolation::Paths;
    let (sysfs_writable, reads) = (options.sysfs_writable, options.process_figures);
    let (messages, records) = (options.messages, options.records);
    let filter = assemble(&Choice { paths, sysfs_writable, messages, records, reads, queues: queues.clone() });
    let mut plan = plan(tree, std::path::Path::new("/"));
    let mut farm = None;
    let mut scratch = None;
    let fill = |root: OwnedFd, links: bool, plan: &Plan| {
        let mut farm = Farm::new(root);
        farm.add_siblings(&plan.siblings, links)
            .and_then(|()| farm.update(tree.clone()))
            .map(|()| farm)
            .map_err(Error::os("making the fake tree"))
    };
    if paths {
        let made = Scratch::new("tree").map_err(|source| Error::Isolation {
            isolation: "paths",
            step: "making a private directory".into(),
            source,
            advice: "set XDG_RUNTIME_DIR or TMPDIR to a directory that you can write to",
        })?;
        let root = made.dir().try_clone().map_err(|source| Error::Os { what: "dup", source })?;
        farm = Some(fill(root, true, &plan)?);
        scratch = Some(made);
        plan.mounts.clear();
    }
    let launched = launch(program, isolation, &plan, &filter, dispositions, &mut |root| {
        farm = Some(fill(root, false, &plan)?);
        Ok(())
    })?;
    let farm = farm.ok_or_else(|| Error::os("making the fake tree")(rustix::io::Errno::NOENT))?;
    Ok(Started { launched, farm, scratch, composed: plan.composed })
}

/// The namespaces in which later mounts are to be made, user namespace first.
fn namespaces_of(pid: Pid, isolation: Isolation) -> Vec<OwnedFd> {
    let names: &[&str] = match isolation {
        Isolation::Userns => &["user", "mnt"],
        Isolation::Namespaces => &["mnt"],
        Isolation::Paths | Isolation::Auto => &[],
    };
    let open = |name: &&str| {
        let path = format!("/proc/{}/ns/{name}", pid.as_raw_nonzero());
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    };
    match names.iter().map(open).collect() {
        Ok(fds) => fds,
        Err(errno) => {
            tracing::warn!(target: "vfuse::run", %errno, "nodes that appear later will not be character devices");
            Vec::new()
        }
    }
}

/// There is a descriptor here for each open file of the program.
fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
}

#[allow(unsafe_code)]
fn this_thread() -> libc::pthread_t {
    // SAFETY: no preconditions.
    unsafe { libc::pthread_self() }
}

/// Kills the program if its run ends early.
struct Killed(Option<Pid>);

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), WaitOptions::empty()));
        }
    }
}
