// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device model and everything it is wired to.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError};

use iommu::{Memory, MemoryFault, Requester};
use pci::FunctionSpec;

use crate::mediated::Shares;
use crate::migration::{Activity, LoadError};
use crate::peer::{Answering, Inbox, PeerBar, Post, pieces};
use crate::{DeviceFile, Event, Interrupts, PageRequests, Steppable, Turn, Wake, Window};

/// Time since the lab started, in nanoseconds.
pub type Nanos = u64;

/// How a function was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResetKind {
    /// Power on: the lab starts.
    PowerOn,
    /// Function level reset.
    FunctionLevel,
    /// D3hot to D0 without No_Soft_Reset.
    PowerManagement,
    /// Secondary bus reset of a bridge above (hot reset).
    Bus,
}

/// What a device can reach during a call.
#[derive(Debug)]
pub struct Io<'a> {
    /// Its way to memory.
    pub dma: &'a Requester,
    /// Its interrupts.
    pub interrupts: &'a Interrupts,
    /// Its page requests.
    pub page_requests: &'a PageRequests,
    /// The mapped pages of each BAR. `None` while no program has the device
    /// open or its memory is off.
    pub windows: [Option<&'a dyn Window>; 6],
    /// The time.
    pub now: Nanos,
    /// What it may do; never [`Activity::Stopped`].
    pub activity: Activity,
}

/// A device model.
///
/// Calls never overlap. A register access has been checked by the host: it
/// lies inside a BAR, is naturally aligned and 1, 2, 4 or 8 bytes long, and
/// memory is enabled.
pub trait Device: Send {
    /// Identity, BARs and capabilities. Constant.
    fn function(&self) -> FunctionSpec;

    /// A trapped load from a BAR.
    fn read(&mut self, io: &mut Io<'_>, bar: usize, offset: u64, data: &mut [u8]);

    /// A trapped store to a BAR.
    fn write(&mut self, io: &mut Io<'_>, bar: usize, offset: u64, data: &[u8]);

    /// Whether a BAR is plain memory: while it has a window, the bytes are
    /// those of the window, where programs and other devices put them. What
    /// they were before and are afterwards is for [`publish`](Self::publish)
    /// and [`collect`](Self::collect). Constant.
    fn is_memory(&self, bar: usize) -> bool {
        let _ = bar;
        false
    }

    /// Stores every register that a program may read into the windows: they
    /// have just appeared.
    fn publish(&mut self, io: &mut Io<'_>);

    /// Takes the stores that were made to the windows: they are about to go.
    fn collect(&mut self, io: &mut Io<'_>) {
        let _ = io;
    }

    /// Looks at the windows for stores, does a bounded piece of work.
    fn turn(&mut self, io: &mut Io<'_>) -> Turn;

    /// Returns to the state after power on. Work under way is dropped, with no
    /// completion and no interrupt.
    fn reset(&mut self, io: &mut Io<'_>, kind: ResetKind);

    /// What a saved state must be of: the model and what of its configuration a
    /// state depends on. `None`: it cannot be saved.
    ///
    /// A model that has one takes up no work in a turn or a store while
    /// [`Io::activity`] is not [`Activity::Running`]: registers answer, what is
    /// submitted waits. While it is [`Activity::Draining`] it goes on with what
    /// it has begun.
    fn identity(&self) -> Option<Vec<u8>> {
        None
    }

    /// Whether nothing is under way that was begun; page requests are counted
    /// elsewhere.
    fn is_drained(&self) -> bool {
        true
    }

    /// Where work is submitted: BAR, offset and bytes, whole pages. A program
    /// that has to know of each submission while the device drains stores there
    /// by `write`. Constant.
    fn portals(&self) -> Vec<(usize, u64, u64)> {
        Vec::new()
    }

    /// Its state, without what configuration space and the windows' pages are
    /// made from. Only while nothing is done in parts.
    fn save(&mut self, io: &mut Io<'_>) -> Vec<u8> {
        let _ = io;
        Vec::new()
    }

    /// Takes over a state of a device of the same identity, whole or not at
    /// all. The bytes may be anything.
    fn load(&mut self, io: &mut Io<'_>, state: &[u8]) -> Result<(), LoadError> {
        let _ = (io, state);
        Err(LoadError::Unsupported)
    }
}

/// A device model in its place: shared by the host, which configures it, and
/// the executor, which gives it turns.
pub struct Endpoint {
    model: Mutex<Model>,
    spec: FunctionSpec,
    /// Its BARs as other devices reach them, and what those have written.
    peers: [Option<Arc<PeerBar>>; 6],
    inbox: Inbox,
    /// The time of the last call.
    time: AtomicU64,
    wake: OnceLock<Arc<dyn Wake>>,
    /// Its way to memory.
    pub requester: Arc<Requester>,
    /// Its interrupts.
    pub interrupts: Interrupts,
    /// Its page requests.
    pub page_requests: Arc<PageRequests>,
    /// Users that it is shared among.
    pub(crate) shares: Shares,
}

struct Model {
    device: Box<dyn Device>,
    file: Option<Arc<dyn DeviceFile>>,
    windows: [Option<Arc<dyn Window>>; 6],
    memory: bool,
    responds: bool,
    /// The windows are full of ones.
    ones: bool,
    /// What the program stored last is in the windows when they are back, and
    /// counts; the device rests until then.
    late: bool,
    activity: Activity,
    /// Who is told that it has drained.
    drain: Option<Arc<dyn Event>>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("vendor", &self.spec.vendor).field("device", &self.spec.device).finish()
    }
}

impl Endpoint {
    /// Puts a model in place.
    #[must_use]
    pub fn new(device: Box<dyn Device>) -> Arc<Endpoint> {
        let page_requests = PageRequests::new(device.function().pasid.is_some());
        Endpoint::place(device, page_requests)
    }

    pub(crate) fn place(device: Box<dyn Device>, page_requests: Arc<PageRequests>) -> Arc<Endpoint> {
        let spec = device.function();
        let model = Model {
            device,
            file: None,
            windows: Default::default(),
            memory: false,
            responds: true,
            ones: false,
            late: false,
            activity: Activity::Running,
            drain: None,
        };
        Arc::new_cyclic(|endpoint| Endpoint {
            peers: std::array::from_fn(|bar| {
                let spec = spec.bars.get(bar)?.as_ref().filter(|bar| bar.is_memory())?;
                Some(PeerBar::new(endpoint, bar, spec.size, model.device.is_memory(bar)))
            }),
            inbox: Inbox::default(),
            time: AtomicU64::new(0),
            model: Mutex::new(model),
            spec,
            page_requests,
            wake: OnceLock::new(),
            requester: Requester::new(),
            interrupts: Interrupts::default(),
            shares: Shares::default(),
        })
    }

    /// Whom to tell of work; the first call counts.
    pub fn set_wake(&self, wake: Arc<dyn Wake>) {
        self.page_requests.set_wake(Arc::clone(&wake));
        let _ = self.wake.set(wake);
    }

    pub(crate) fn kick(&self) {
        if let Some(wake) = self.wake.get() {
            wake.kick();
        }
    }

    /// What the model says of its function.
    #[must_use]
    pub fn spec(&self) -> &FunctionSpec {
        &self.spec
    }

    /// A program has opened the device: from now on its windows are `file`'s.
    /// `None`: the last one has closed it.
    pub fn set_file(&self, file: Option<Arc<dyn DeviceFile>>, now: Nanos) {
        let mut model = self.lock();
        self.shut(&mut model, now);
        self.close_windows(&mut model, now);
        if let Some(file) = &file {
            for (bar, peer) in self.peers.iter().enumerate() {
                if let Some(peer) = peer {
                    file.connect(bar, Arc::clone(peer) as Arc<dyn Memory>);
                }
            }
            file.set_accessible(model.memory);
        }
        let open = file.is_some();
        model.file = file;
        (model.ones, model.late) = (false, false);
        if model.memory {
            self.show(&mut model, now);
        }
        self.open_inbox(&model);
        drop(model);
        if let Some(wake) = self.wake.get() {
            wake.set_active(open);
        }
    }

    /// Memory decoding on or off. Off is a fence: no program access to a mapped
    /// BAR succeeds after the return.
    pub fn set_memory(&self, on: bool, now: Nanos) {
        let mut model = self.lock();
        let late = model.late;
        self.switch_memory(&mut model, on, now);
        drop(model);
        if on && late {
            self.kick();
        }
    }

    /// Memory decoding off as a fence, where the program does not see it: its
    /// accesses wait ([`DeviceFile::hold`]). What it has stored before is not
    /// lost unless the device is reset; meanwhile the device rests.
    pub fn hold_memory(&self, now: Nanos) {
        let mut model = self.lock();
        let shown = model.windows.iter().any(Option::is_some);
        self.switch_memory(&mut model, false, now);
        model.late |= shown;
    }

    fn switch_memory(&self, model: &mut Model, on: bool, now: Nanos) {
        if model.memory == on {
            return;
        }
        if !on {
            self.shut(model, now);
        }
        model.memory = on;
        if on {
            self.show(model, now);
        } else {
            self.close_windows(model, now);
            if let Some(file) = &model.file {
                file.set_accessible(false);
            }
        }
        self.open_inbox(model);
    }

    /// Whether accesses reach the device at all. If they do not (its link is
    /// down, or a reset that the program knows nothing of has turned memory
    /// decoding off), loads of what is accessible give ones and stores are
    /// dropped.
    pub fn set_responding(&self, on: bool, now: Nanos) {
        let mut model = self.lock();
        if model.responds == on {
            return;
        }
        self.shut(&mut model, now);
        self.close_windows(&mut model, now);
        model.responds = on;
        if model.memory {
            self.show(&mut model, now);
        }
        self.open_inbox(&model);
    }

    /// What the device may do from now on. What is under way is over at the
    /// return, as far as it may not be. Stopped, loads give zeros, stores are
    /// dropped and nothing moves; what was stored before the call counts.
    pub fn set_activity(&self, activity: Activity, now: Nanos) {
        let mut model = self.lock();
        let old = model.activity;
        if old == activity || (old, activity) == (Activity::Draining, Activity::Quiesced) {
            return;
        }
        model.drain = None;
        // What has come from other devices came while it was as it was.
        if activity == Activity::Stopped {
            self.shut(&mut model, now);
            self.close_windows(&mut model, now);
        }
        if old == Activity::Stopped
            && let Some(file) = model.file.as_ref().filter(|_| model.memory && model.responds)
        {
            // What was stored meanwhile is dropped.
            (0..6).filter_map(|bar| file.window(bar)).for_each(|window| fill(&*window, 0));
        }
        model.activity = activity;
        if model.memory && (activity == Activity::Stopped || old == Activity::Stopped) {
            self.show(&mut model, now);
        }
        if activity == Activity::Stopped || old == Activity::Stopped {
            self.open_inbox(&model);
        }
        drop(model);
        // What was kept is done; others have nothing to do.
        if activity == Activity::Running {
            self.kick();
        }
    }

    /// From now on the device begins nothing new, and it is quiesced when what it
    /// has begun is over and no page request is out: then `done` is signalled,
    /// once, perhaps before the return. Any other change of what it may do ends
    /// that, and `done` stays silent.
    pub fn drain(&self, done: Arc<dyn Event>, now: Nanos) {
        let mut model = self.lock();
        self.deliver(&mut model, now);
        model.activity = Activity::Draining;
        model.drain = Some(done);
        self.end_drain(&mut model, now);
        drop(model);
        self.kick();
    }

    fn end_drain(&self, model: &mut Model, now: Nanos) {
        if model.activity != Activity::Draining
            || self.page_requests.outstanding() > 0
            || !self.with(model, now, |device, _| device.is_drained())
        {
            return;
        }
        model.activity = Activity::Quiesced;
        if let Some(done) = model.drain.take() {
            done.signal();
        }
    }

    /// [`Device::portals`].
    #[must_use]
    pub fn portals(&self) -> Vec<(usize, u64, u64)> {
        self.lock().device.portals()
    }

    /// What the device may do.
    #[must_use]
    pub fn activity(&self) -> Activity {
        self.lock().activity
    }

    /// [`Device::identity`].
    #[must_use]
    pub fn identity(&self) -> Option<Vec<u8>> {
        self.lock().device.identity()
    }

    /// [`Device::save`].
    #[must_use]
    pub fn save(&self, now: Nanos) -> Vec<u8> {
        let mut model = self.lock();
        self.deliver(&mut model, now);
        self.with(&mut model, now, |device, io| device.save(io))
    }

    /// [`Device::load`].
    pub fn load(&self, state: &[u8], now: Nanos) -> Result<(), LoadError> {
        let mut model = self.lock();
        model.late = false;
        self.with(&mut model, now, |device, io| device.load(io, state))
    }

    /// A trapped load.
    pub fn read(&self, bar: usize, offset: u64, data: &mut [u8], now: Nanos) {
        let mut model = self.lock();
        if !model.responds {
            return data.fill(0xff);
        }
        if model.activity == Activity::Stopped {
            return data.fill(0);
        }
        self.deliver(&mut model, now);
        self.with(&mut model, now, |device, io| device.read(io, bar, offset, data));
    }

    /// A trapped store.
    pub fn write(&self, bar: usize, offset: u64, data: &[u8], now: Nanos) {
        let mut model = self.lock();
        if !model.responds || model.activity == Activity::Stopped {
            return;
        }
        self.deliver(&mut model, now);
        self.with(&mut model, now, |device, io| device.write(io, bar, offset, data));
        drop(model);
        self.kick();
    }

    /// Resets the model, and those that share it.
    pub fn reset(&self, kind: ResetKind, now: Nanos) {
        let mut model = self.lock();
        drop(self.inbox.take());
        model.late = false;
        model.drain = None;
        self.page_requests.reset();
        self.with(&mut model, now, |device, io| {
            device.reset(io, kind);
            device.publish(io);
        });
        drop(model);
        self.shares.reset(kind, now);
    }

    /// Gives the device a turn. `None`: somebody else is using it just now.
    pub fn turn(&self, now: Nanos) -> Option<Turn> {
        let mut model = match self.model.try_lock() {
            Ok(model) => model,
            Err(TryLockError::Poisoned(e)) => e.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if model.activity == Activity::Stopped || model.late {
            return Some(Turn::Idle);
        }
        self.deliver(&mut model, now);
        let turn = self.with(&mut model, now, |device, io| device.turn(io));
        self.end_drain(&mut model, now);
        Some(turn)
    }

    /// A BAR as the target of other devices' DMA; offsets count from its start.
    /// `None` if it is no memory BAR.
    #[must_use]
    pub fn peer(&self, bar: usize) -> Option<Arc<dyn Memory>> {
        self.peers.get(bar)?.clone().map(|peer| peer as Arc<dyn Memory>)
    }

    pub(crate) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// A read of another device. `None`: it is in use just now.
    pub(crate) fn peer_read(&self, bar: usize, offset: u64, len: usize) -> Option<Result<Vec<u8>, MemoryFault>> {
        let mut model = match self.model.try_lock() {
            Ok(model) => model,
            Err(TryLockError::Poisoned(e)) => e.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let now = self.time.load(Ordering::Relaxed);
        if !model.memory || !model.responds {
            return Some(Err(MemoryFault));
        }
        let mut data = vec![0; len];
        if model.activity != Activity::Stopped {
            self.deliver(&mut model, now);
            self.with(&mut model, now, |device, io| {
                for (at, size) in pieces(offset, len) {
                    if let Some(part) = data.get_mut(at..at + size) {
                        device.read(io, bar, offset + at as u64, part);
                    }
                }
            });
        }
        drop(model);
        // It may have been in the way of a turn.
        self.kick();
        Some(Ok(data))
    }

    /// Does what other devices have written.
    fn deliver(&self, model: &mut Model, now: Nanos) {
        if let Some(posts) = self.inbox.take() {
            self.deliver_these(model, posts, now);
        }
    }

    fn deliver_these(&self, model: &mut Model, posts: VecDeque<Post>, now: Nanos) {
        if posts.is_empty() || !model.responds || model.activity == Activity::Stopped {
            return;
        }
        self.with(model, now, |device, io| {
            for Post { bar, offset, data } in posts {
                for (at, size) in pieces(offset, data.len()) {
                    device.write(io, bar, offset + at as u64, data.get(at..at + size).unwrap_or_default());
                }
            }
        });
    }

    /// Nobody answers to other devices any more; what has come is done.
    fn shut(&self, model: &mut Model, now: Nanos) {
        let posts = self.inbox.set(Answering::Nobody, &Default::default());
        self.deliver_these(model, posts, now);
    }

    /// Who answers to other devices from now on.
    fn open_inbox(&self, model: &Model) {
        let answering = match model.activity {
            _ if !model.memory || !model.responds => Answering::Nobody,
            Activity::Stopped => Answering::Stopped,
            Activity::Running | Activity::Draining | Activity::Quiesced => Answering::Device,
        };
        self.inbox.set(answering, &model.windows);
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Makes the windows accessible: the device's, or full of ones.
    fn show(&self, model: &mut Model, now: Nanos) {
        let late = std::mem::take(&mut model.late);
        if let Some(file) = &model.file {
            file.set_accessible(true);
            let windows: [Option<Arc<dyn Window>>; 6] = std::array::from_fn(|bar| file.window(bar));
            if !model.responds || model.activity == Activity::Stopped {
                let byte = if model.responds { 0 } else { 0xff };
                windows.iter().flatten().for_each(|window| fill(&**window, byte));
                model.ones = !model.responds;
                return;
            }
            // What the model does not publish reads as zero again.
            if std::mem::take(&mut model.ones) {
                windows.iter().flatten().for_each(|window| fill(&**window, 0));
            }
            model.windows = windows;
        }
        if !model.responds || model.activity == Activity::Stopped {
            return;
        }
        if late {
            self.with(model, now, |device, io| device.collect(io));
        }
        self.with(model, now, |device, io| device.publish(io));
    }

    fn close_windows(&self, model: &mut Model, now: Nanos) {
        if model.windows.iter().any(Option::is_some) {
            self.with(model, now, |device, io| device.collect(io));
        }
        model.windows = Default::default();
    }

    fn with<R>(&self, model: &mut Model, now: Nanos, call: impl FnOnce(&mut dyn Device, &mut Io<'_>) -> R) -> R {
        let Model { device, windows, activity, .. } = model;
        self.time.store(now, Ordering::Relaxed);
        let mut io = Io {
            dma: &self.requester,
            interrupts: &self.interrupts,
            page_requests: &self.page_requests,
            windows: std::array::from_fn(|bar| windows[bar].as_deref()),
            now,
            activity: *activity,
        };
        call(device.as_mut(), &mut io)
    }
}

impl Steppable for Endpoint {
    fn turn(&self, now: Nanos) -> Option<Turn> {
        Endpoint::turn(self, now)
    }

    fn set_wake(&self, wake: Arc<dyn Wake>) {
        Endpoint::set_wake(self, wake);
    }
}

/// Ones are what a program loads where nobody answers. A store of its own shows
/// until the next time; the device never sees it.
fn fill(window: &dyn Window, byte: u8) {
    let slice = window.slice();
    let bytes = [byte; 4096];
    for at in (0..slice.len()).step_by(bytes.len()) {
        let len = bytes.len().min(slice.len() - at);
        if let Ok(part) = slice.subslice(at, len) {
            part.copy_from(&bytes[..len]);
        }
    }
}
