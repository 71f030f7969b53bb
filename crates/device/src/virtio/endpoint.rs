// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio model in its place, and what its driver has set.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError};

use iommu::Requester;

use super::{QueueSetup, QueueState, VirtioDevice, VirtioInterrupts, VirtioIo, VirtioSpec, feature, status};
use crate::{Nanos, Steppable, Turn, Wake};

/// When what was set of a queue is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Latch {
    /// When the queue begins to run, as hardware does (VNET-6.3b).
    #[default]
    Run,
    /// When the queue becomes ready, as vdpa_sim does: what is set later
    /// counts only after it was not ready.
    Ready,
}

/// A virtio model in its place: shared by the host, which configures it, and
/// the executor, which gives it turns. No errno is decided here.
pub struct VirtioEndpoint {
    model: Mutex<Model>,
    spec: VirtioSpec,
    latch: Latch,
    wake: OnceLock<Arc<dyn Wake>>,
    /// The way to memory of each group.
    dma: Vec<Arc<Requester>>,
    /// Callbacks.
    pub interrupts: VirtioInterrupts,
    /// Queues that were kicked since the last turn, one flag each.
    kicks: Vec<AtomicBool>,
}

struct Model {
    device: Box<dyn VirtioDevice>,
    status: u8,
    features: u64,
    suspended: bool,
    queues: Vec<Queue>,
}

/// One queue, as its driver has set it.
#[derive(Clone, Copy, Debug)]
struct Queue {
    size: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    /// Position while it does not run. `None`: nobody gave one.
    state: Option<QueueState>,
    ready: bool,
    /// What was taken when it became ready.
    latched: Option<QueueSetup>,
    runs: bool,
}

impl fmt::Debug for VirtioEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioEndpoint").field("device", &self.spec.device_id).finish_non_exhaustive()
    }
}

impl VirtioEndpoint {
    /// Puts a model in place.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>, latch: Latch) -> Arc<VirtioEndpoint> {
        let spec = device.spec();
        let dma = (0..spec.groups.max(1)).map(|_| Requester::new()).collect();
        VirtioEndpoint::place(device, latch, spec, dma)
    }

    /// Puts a model in place whose queues are all in one group, whatever it
    /// says.
    #[must_use]
    pub fn with_one_group(device: Box<dyn VirtioDevice>, latch: Latch) -> Arc<VirtioEndpoint> {
        let mut spec = device.spec();
        let dma = vec![Requester::new(); spec.groups.max(1) as usize];
        spec.queues.iter_mut().for_each(|queue| queue.group = 0);
        (spec.groups, spec.address_spaces) = (1, 1);
        VirtioEndpoint::place(device, latch, spec, dma)
    }

    fn place(
        mut device: Box<dyn VirtioDevice>,
        latch: Latch,
        spec: VirtioSpec,
        dma: Vec<Arc<Requester>>,
    ) -> Arc<VirtioEndpoint> {
        dma.iter().for_each(|requester| requester.set_bus_master(true));
        device.set_features(0);
        let queues = spec.queues.iter().map(|queue| Queue::new(queue.max_size)).collect();
        Arc::new(VirtioEndpoint {
            model: Mutex::new(Model { device, status: 0, features: 0, suspended: false, queues }),
            latch,
            wake: OnceLock::new(),
            interrupts: VirtioInterrupts::new(spec.queues.len()),
            kicks: spec.queues.iter().map(|_| AtomicBool::new(false)).collect(),
            dma,
            spec,
        })
    }

    /// What the model says of itself.
    #[must_use]
    pub fn spec(&self) -> &VirtioSpec {
        &self.spec
    }

    /// The way to memory of a group; bus mastering is on from the start.
    #[must_use]
    pub fn requester(&self, group: u32) -> Option<&Arc<Requester>> {
        self.dma.get(group as usize)
    }

    /// Somebody kicked a queue. From any thread.
    pub fn kick(&self, queue: u16) {
        if let Some(kicked) = self.kicks.get(usize::from(queue)) {
            kicked.store(true, Ordering::Release);
            self.wake();
        }
    }

    /// The status byte.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.lock().status
    }

    /// Sets the status byte as it is given; with DRIVER_OK queues that are
    /// ready start. For 0 see [`reset`](Self::reset).
    pub fn set_status(&self, status: u8, now: Nanos) {
        let mut model = self.lock();
        model.status = status;
        self.settle(&mut model, now);
    }

    /// The driver's features.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.lock().features
    }

    /// Takes the driver's features, those offered.
    pub fn set_features(&self, features: u64) {
        let mut model = self.lock();
        model.features = features & self.spec.features;
        let features = model.features;
        model.device.set_features(features);
    }

    /// Sets a queue's size.
    pub fn set_queue_size(&self, queue: u16, size: u16) {
        self.with_queue(queue, |queue| queue.size = size);
    }

    /// The size that a queue was set to, its maximum at first.
    #[must_use]
    pub fn queue_size(&self, queue: u16) -> u16 {
        self.lock().queues.get(usize::from(queue)).map_or(0, |queue| queue.size)
    }

    /// Sets where a queue lies.
    pub fn set_queue_addresses(&self, queue: u16, descriptors: u64, driver: u64, device: u64) {
        self.with_queue(queue, |queue| (queue.descriptors, queue.driver, queue.device) = (descriptors, driver, device));
    }

    /// Sets a queue's position. A queue that runs goes on where it is.
    pub fn set_queue_state(&self, queue: u16, state: QueueState) {
        self.with_queue(queue, |queue| queue.state = Some(state));
    }

    /// A queue's position, running or not.
    #[must_use]
    pub fn queue_state(&self, index: u16) -> QueueState {
        let model = self.lock();
        let packed = model.features & feature::RING_PACKED != 0;
        match model.queues.get(usize::from(index)) {
            Some(queue) if queue.runs => model.device.queue_state(index),
            Some(queue) => queue.state.unwrap_or(QueueState::initial(packed)),
            None => QueueState::initial(packed),
        }
    }

    /// Whether a queue is ready.
    #[must_use]
    pub fn is_ready(&self, queue: u16) -> bool {
        self.lock().queues.get(usize::from(queue)).is_some_and(|queue| queue.ready)
    }

    /// Makes a queue ready or not.
    pub fn set_ready(&self, index: u16, ready: bool, now: Nanos) {
        let mut model = self.lock();
        let packed = model.features & feature::RING_PACKED != 0;
        let Some(queue) = model.queues.get_mut(usize::from(index)) else { return };
        if ready && !queue.ready && self.latch == Latch::Ready {
            queue.latched = Some(queue.setup(packed));
        }
        queue.ready = ready;
        self.settle(&mut model, now);
    }

    /// Stops all queues; their positions are exact after the return.
    pub fn suspend(&self, now: Nanos) {
        let mut model = self.lock();
        model.suspended = true;
        self.settle(&mut model, now);
    }

    /// Lets them run again. What was kicked meanwhile is looked at.
    pub fn resume(&self, now: Nanos) {
        let mut model = self.lock();
        model.suspended = false;
        self.settle(&mut model, now);
    }

    /// Whether it is suspended.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.lock().suspended
    }

    /// Status 0: queues stop, features, queues but for their sizes, and
    /// eventfds are forgotten. Nothing of memory is touched after the return.
    pub fn reset(&self, now: Nanos) {
        let mut model = self.lock();
        model.status = 0;
        model.suspended = false;
        self.settle(&mut model, now);
        for queue in &mut model.queues {
            *queue = Queue::new(queue.size);
        }
        self.kicks.iter().for_each(|kick| kick.store(false, Ordering::Relaxed));
        self.interrupts.clear();
        model.features = 0;
        self.with(&mut model, now, |device, io| device.reset(io));
        model.device.set_features(0);
    }

    /// Does something while the device has no turn: what changes meanwhile
    /// changes at once for it.
    pub fn still<R>(&self, change: impl FnOnce() -> R) -> R {
        let model = self.lock();
        let result = change();
        drop(model);
        // A turn may have come in vain.
        self.wake();
        result
    }

    /// Reads configuration space; bytes beyond it are zeros.
    pub fn read_config(&self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        let left = self.spec.config_size.saturating_sub(offset) as usize;
        let len = data.len().min(left);
        if let Some(data) = data.get_mut(..len) {
            self.lock().device.read_config(offset, data);
        }
    }

    /// Writes configuration space; bytes beyond it are dropped.
    pub fn write_config(&self, offset: u32, data: &[u8]) {
        let left = self.spec.config_size.saturating_sub(offset) as usize;
        if let Some(data) = data.get(..data.len().min(left)) {
            self.lock().device.write_config(offset, data);
        }
        self.wake();
    }

    /// Counts changes of the configuration.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.lock().device.generation()
    }

    /// Vendor statistics of a queue.
    #[must_use]
    pub fn statistics(&self, queue: u16) -> Option<Vec<(&'static str, u64)>> {
        self.lock().device.statistics(queue)
    }

    /// Management gives another MAC address; whether the device takes it.
    pub fn set_mac(&self, mac: [u8; 6]) -> bool {
        self.lock().device.set_mac(mac)
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake.kick();
        }
    }

    fn with_queue(&self, index: u16, change: impl FnOnce(&mut Queue)) {
        if let Some(queue) = self.lock().queues.get_mut(usize::from(index)) {
            change(queue);
        }
    }

    /// Starts and stops queues as status, suspension and ready bits say.
    fn settle(&self, model: &mut Model, now: Nanos) {
        let live = model.status & status::DRIVER_OK != 0
            && model.status & (status::NEEDS_RESET | status::FAILED) == 0
            && !model.suspended;
        let packed = model.features & feature::RING_PACKED != 0;
        let before = model.runs();
        for index in 0..model.queues.len() {
            let Some(queue) = model.queues.get_mut(index) else { continue };
            let wanted = live && queue.ready;
            if wanted == queue.runs {
                continue;
            }
            queue.runs = wanted;
            let setup = queue.setup(packed);
            let index = index as u16;
            if wanted {
                self.with(model, now, |device, io| device.start_queue(io, index, &setup));
            } else {
                let state = self.with(model, now, |device, io| device.stop_queue(io, index));
                if let Some(queue) = model.queues.get_mut(usize::from(index)) {
                    queue.state = Some(state);
                }
            }
        }
        let after = model.runs();
        if let Some(wake) = self.wake.get().filter(|_| before != after) {
            wake.set_active(after);
        }
        self.wake();
    }

    fn with<R>(
        &self,
        model: &mut Model,
        now: Nanos,
        call: impl FnOnce(&mut dyn VirtioDevice, &mut VirtioIo<'_>) -> R,
    ) -> R {
        let mut io = VirtioIo { dma: &self.dma, interrupts: &self.interrupts, now, failed: None };
        let result = call(model.device.as_mut(), &mut io);
        if let Some(why) = io.failed
            && model.status & status::NEEDS_RESET == 0
        {
            tracing::warn!(target: "vfuse::virtio", device = self.spec.device_id, why, "needs reset");
            model.status |= status::NEEDS_RESET;
            self.settle(model, now);
            self.interrupts.config();
        }
        result
    }
}

impl Steppable for VirtioEndpoint {
    fn turn(&self, now: Nanos) -> Option<Turn> {
        let mut model = match self.model.try_lock() {
            Ok(model) => model,
            Err(TryLockError::Poisoned(e)) => e.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if !model.runs() {
            return Some(Turn::Idle);
        }
        for (index, kicked) in self.kicks.iter().enumerate() {
            if kicked.load(Ordering::Relaxed)
                && kicked.swap(false, Ordering::Acquire)
                && model.queues.get(index).is_some_and(|queue| queue.runs)
            {
                model.device.kick(index as u16);
            }
        }
        Some(self.with(&mut model, now, |device, io| device.turn(io)))
    }

    fn set_wake(&self, wake: Arc<dyn Wake>) {
        if self.wake.set(Arc::clone(&wake)).is_ok() {
            let mut model = self.lock();
            model.device.set_wake(Arc::clone(&wake));
            let runs = model.runs();
            drop(model);
            if runs {
                wake.set_active(true);
            }
        }
    }
}

impl Model {
    fn runs(&self) -> bool {
        self.queues.iter().any(|queue| queue.runs)
    }
}

impl Queue {
    fn new(size: u16) -> Queue {
        Queue { size, descriptors: 0, driver: 0, device: 0, state: None, ready: false, latched: None, runs: false }
    }

    /// What a queue that starts now gets.
    fn setup(&self, packed: bool) -> QueueSetup {
        let Queue { size, descriptors, driver, device, .. } = *self;
        let state = self.state.map_or(QueueState::initial(packed), |state| QueueState::from_word(state.word(), packed));
        match self.latched {
            Some(latched) if self.ready => QueueSetup { state, ..latched },
            _ => QueueSetup { size, descriptors, driver, device, state },
        }
    }
}
