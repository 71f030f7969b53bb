// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pretend kernel behind the front door.

use std::sync::{Arc, Mutex, MutexGuard};

use caller::{Caller, FileId, ProcessId, Reply, Ticket, Wait, Wake};
use device::{DeviceFile, Steppable};
use host::tree::{Entry, Node, Tree};
use host::{FileKind, Host};
use sys::executor::Executor;
use uapi::Errno;

use crate::platform::Real;

/// A host whose devices have threads to run on.
pub(crate) struct Running {
    host: Arc<Mutex<Host>>,
    platform: Arc<Real>,
    executor: Executor,
    /// Endpoints that the executor has, as of tree generation `generation`.
    placed: Vec<Arc<dyn Steppable>>,
    generation: Option<u64>,
    /// Calls whose wait is over.
    woken: Vec<(Ticket, Wake)>,
    /// Files of the tree have changed.
    files_changed: bool,
    /// The host's deadline that the platform's timer was set to.
    deadline: Option<u64>,
}

impl Running {
    pub(crate) fn new(host: Arc<Mutex<Host>>, platform: Arc<Real>) -> Running {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let executor = Executor::new(workers, platform.clock());
        let mut running = Running {
            host,
            platform,
            executor,
            placed: Vec::new(),
            generation: None,
            woken: Vec::new(),
            files_changed: false,
            deadline: None,
        };
        running.place();
        running
    }

    /// Puts endpoints that have appeared on the executor, takes those away
    /// that have gone.
    fn place(&mut self) {
        let host = self.host.lock().unwrap_or_else(|e| e.into_inner());
        if self.generation.replace(host.generation()) == Some(host.generation()) {
            return;
        }
        let functions = host.endpoints().map(|endpoint| Arc::clone(endpoint) as Arc<dyn Steppable>);
        let vdpa = host.vdpa_endpoints().map(|endpoint| Arc::clone(endpoint) as Arc<dyn Steppable>);
        let present: Vec<Arc<dyn Steppable>> = functions.chain(vdpa).collect();
        drop(host);
        let has = |list: &[Arc<dyn Steppable>], endpoint: &Arc<dyn Steppable>| {
            list.iter().any(|e| std::ptr::addr_eq(Arc::as_ptr(e), Arc::as_ptr(endpoint)))
        };
        for gone in self.placed.iter().filter(|e| !has(&present, e)) {
            self.executor.remove(gone);
        }
        for new in present.iter().filter(|e| !has(&self.placed, e)) {
            self.executor.add(Arc::clone(new));
        }
        self.placed = present;
    }

    /// Does something that may end waits or set deadlines.
    fn act<T>(&mut self, action: impl FnOnce(&mut Host) -> T) -> T {
        let mut host = self.host.lock().unwrap_or_else(|e| e.into_inner());
        let result = action(&mut host);
        self.woken.append(&mut host.take_woken());
        self.files_changed |= host.has_changed_files();
        let deadline = host.deadline();
        if self.deadline != deadline {
            self.deadline = deadline;
            self.platform.set_deadline(deadline);
        }
        result
    }

    /// The control socket's thread looks at the host too.
    fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl intercept::Kernel for Running {
    fn open(&mut self, node: Node, caller: &dyn Caller) -> Result<FileId, Errno> {
        self.act(|host| host.open(node, caller))
    }

    fn ioctl(&mut self, file: FileId, request: u32, arg: u64, caller: &dyn Caller) -> Result<Reply, Errno> {
        self.act(|host| host.ioctl(file, request, arg, caller))
    }

    fn read(&mut self, file: FileId, offset: u64, buf: u64, len: u64, caller: &dyn Caller) -> Result<Reply, Errno> {
        self.act(|host| host.read(file, offset, buf, len, caller))
    }

    fn write(&mut self, file: FileId, offset: u64, buf: u64, len: u64, caller: &dyn Caller) -> Result<Reply, Errno> {
        self.act(|host| host.write(file, offset, buf, len, caller))
    }

    fn write_message(&mut self, file: FileId, parts: &[(u64, u64)], caller: &dyn Caller) -> Result<u64, Errno> {
        self.act(|host| host.write_message(file, parts, caller))
    }

    fn map_doorbell(&mut self, file: FileId, offset: u64, len: u64, shared: bool, read: bool) -> Result<(), Errno> {
        self.host().map_doorbell(file, offset, len, shared, read)
    }

    fn mmap(&mut self, file: FileId, offset: u64, len: u64, shared: bool, exec: bool) -> Result<(), Errno> {
        self.host().mmap(file, offset, len, shared, exec)
    }

    fn release(&mut self, file: FileId) {
        self.act(|host| host.release(file));
        self.place();
    }

    fn device_file(&self, file: FileId) -> Option<Arc<dyn DeviceFile>> {
        self.host().device_file(file)
    }

    fn kind(&self, file: FileId) -> Option<intercept::FileKind> {
        self.host().kind(file).map(|kind| match kind {
            FileKind::VfioContainer => intercept::FileKind::Container,
            FileKind::VfioGroup => intercept::FileKind::Group,
            FileKind::VfioDevice => intercept::FileKind::Device,
            FileKind::Iommufd => intercept::FileKind::Iommufd,
            FileKind::IommufdObject => intercept::FileKind::Other,
            FileKind::VhostVdpa => intercept::FileKind::VhostVdpa,
            FileKind::VfioStream => intercept::FileKind::Stream,
            FileKind::AerInject => intercept::FileKind::AerInject,
        })
    }

    fn tree_generation(&self) -> u64 {
        self.host().generation()
    }

    fn tree(&self) -> Tree {
        self.host().tree()
    }

    fn take_changed_files(&mut self) -> Vec<(String, Entry)> {
        if !std::mem::take(&mut self.files_changed) {
            return Vec::new();
        }
        self.host().take_changed_files()
    }

    fn may_write_attribute(&self, path: &str, caller: &dyn Caller) -> Result<(), Errno> {
        self.host().may_store(path, caller)
    }

    fn write_attribute(&mut self, path: &str, data: &[u8]) -> Result<Reply, Errno> {
        let result = self.act(|host| host.store(path, data));
        self.place();
        result
    }

    fn figures(&self, process: ProcessId) -> intercept::Figures {
        const PAGE_KIB: u64 = 4;
        let (locked, pinned) = self.host().figures(process);
        intercept::Figures { locked: locked.saturating_mul(PAGE_KIB), pinned: pinned.saturating_mul(PAGE_KIB) }
    }

    fn wait(&self, ticket: Ticket) -> Option<Wait> {
        self.host().wait(ticket)
    }

    fn take_woken(&mut self) -> Vec<(Ticket, Wake)> {
        std::mem::take(&mut self.woken)
    }

    fn interrupted(&mut self, ticket: Ticket) {
        self.act(|host| host.interrupted(ticket));
    }

    fn abandon(&mut self, ticket: Ticket) {
        self.act(|host| host.abandon(ticket));
        self.woken.retain(|(woken, _)| *woken != ticket);
    }

    fn attend(&mut self) {
        let fired = self.platform.fired();
        // The timer may have gone off.
        self.deadline = None;
        self.act(|host| {
            for watch in fired {
                host.event_fired(watch);
            }
            host.elapse();
        });
        self.place();
    }
}
