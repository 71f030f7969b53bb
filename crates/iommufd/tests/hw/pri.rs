// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A function that asks for pages as PCIe has it, and programs that answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use caller::FileId;
use device::{Asked, PageRequests, PageTicket};
use iommu::Access;
use iommufd::{DeviceProperties, FaultCookies, FaultTransport, ObjectId, Options, PageResponder, PageResponseCode};
use uapi::Errno;
use uapi::iommufd::HwptAlloc;
use uapi::iommufd_events::{PageAnswer, PageFault};
use zerocopy::{FromBytes, IntoBytes};

use crate::lab::{FAULT_ID_VALID, Lab, PASID};

/// What an answer can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A cookie that no other request ever has.
    Seq,
    /// A group index.
    NineBit,
    /// An index that is kept back while an answer may come.
    Quarantined,
    /// Linux's cookie.
    Linux,
}

pub(crate) const MODES: [Mode; 3] = [Mode::Seq, Mode::NineBit, Mode::Quarantined];

impl Mode {
    pub(crate) fn options(self) -> Options {
        let cookies = if self == Mode::Linux { FaultCookies::LowestFree } else { FaultCookies::Monotonic };
        let transport = match self {
            Mode::Seq | Mode::Linux => FaultTransport::Cookie,
            Mode::NineBit => FaultTransport::NineBit,
            Mode::Quarantined => FaultTransport::Quarantine,
        };
        Options { fault_cookies: cookies, fault_transport: transport, ..Options::default() }
    }
}

/// Who answers: a fault queue, and a HWPT with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Consumer {
    pub(crate) queue: u32,
    pub(crate) file: FileId,
    pub(crate) hwpt: u32,
}

/// A bound function, page requests on.
pub(crate) struct Function {
    pub(crate) lab: Lab,
    pub(crate) pri: Arc<PageRequests>,
    pub(crate) device: ObjectId,
    ioas: u32,
}

impl Function {
    pub(crate) fn new(mode: Mode) -> Function {
        Function::with(mode.options(), true, 512)
    }

    pub(crate) fn with(options: Options, needs_pasid: bool, allocation: u32) -> Function {
        let mut lab = Lab::with_options(options);
        let (device, pri) = add(&mut lab, 1, needs_pasid, allocation);
        let ioas = lab.ioas();
        Function { lab, pri, device, ioas }
    }

    pub(crate) fn consumer(&mut self) -> Consumer {
        let (queue, file) = self.lab.fault_queue();
        let hwpt = self.hwpt(queue);
        Consumer { queue, file, hwpt }
    }

    /// Another HWPT with a fault queue.
    pub(crate) fn hwpt(&mut self, queue: u32) -> u32 {
        let base = HwptAlloc { dev_id: self.device.0, pt_id: self.ioas, ..HwptAlloc::default() };
        let alloc = HwptAlloc { flags: FAULT_ID_VALID | PASID, fault_id: queue, ..base };
        self.lab.call(alloc).unwrap().out_hwpt_id
    }

    pub(crate) fn attach(&mut self, pasid: u32, to: Consumer) {
        self.lab.attach(self.device, pasid, to.hwpt).unwrap();
    }

    pub(crate) fn detach(&mut self, pasid: u32) {
        self.lab.detach(self.device, pasid);
    }

    pub(crate) fn ask(&self, pasid: Option<u32>) -> PageTicket {
        match self.pri.ask(pasid, Access::Read, 0x5000) {
            Asked::Sent(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    /// The records of as many groups as are there.
    pub(crate) fn read(&mut self, of: Consumer) -> Vec<PageFault> {
        let bytes = self.lab.read(of.file, 40 * 1024).unwrap();
        bytes.chunks(40).map(|record| PageFault::read_from_bytes(record).unwrap()).collect()
    }

    pub(crate) fn read_one(&mut self, of: Consumer) -> PageFault {
        let bytes = self.lab.read(of.file, 40).unwrap();
        PageFault::read_from_bytes(&bytes).unwrap()
    }

    pub(crate) fn write(&mut self, to: Consumer, cookie: u32, code: u32) -> Result<u64, Errno> {
        self.lab.write(to.file, PageAnswer { cookie, code }.as_bytes())
    }

    /// Answers, as the function sees it.
    pub(crate) fn seen(&self) -> Vec<(PageTicket, PageResponseCode)> {
        self.pri.take_answers()
    }

    pub(crate) fn is_readable(&self, of: Consumer) -> bool {
        self.lab.is_readable(of.file)
    }

    pub(crate) fn advance(&mut self, ns: u64) {
        self.lab.platform.now.fetch_add(ns, Ordering::Relaxed);
    }
}

/// Binds one more function.
pub(crate) fn add(lab: &mut Lab, group: u64, needs_pasid: bool, allocation: u32) -> (ObjectId, Arc<PageRequests>) {
    let pri = PageRequests::new(needs_pasid);
    let properties = DeviceProperties {
        max_pasids: 1 << 20,
        responder: Some(Arc::clone(&pri) as Arc<dyn PageResponder>),
        page_requests: allocation,
        ..DeviceProperties::default()
    };
    let (device, _) = lab.bind(group, properties);
    pri.set_enabled(true, allocation);
    (device, pri)
}
