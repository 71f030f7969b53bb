// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A lab for the tests: one program with `/dev/iommu` open, mock devices and
//! devices as VFIO binds them.

use std::sync::{Arc, Mutex};

use caller::testing::{Client, TestPlatform};
use caller::{Accounts, FileId, FileIds, Reply};
use iommu::Requester;
use iommufd::{
    Binding, Call, ContextId, DeviceProperties, FaultCookies, Iommufd, ObjectId, Options, PageResponder, PageResponse,
};
use uapi::Errno;
use uapi::iommufd::{self as abi, Command};
use uapi::iommufd_test::{self as test, TestCmd, op};

/// Where the program has memory.
pub(crate) const MEMORY: u64 = 0x4000_0000;
pub(crate) const PAGE: u64 = 4096;

/// The subsystem and one program.
pub(crate) struct Lab {
    pub(crate) iommufd: Iommufd,
    pub(crate) files: FileIds,
    pub(crate) client: Client,
    pub(crate) file: FileId,
    pub(crate) context: ContextId,
    pub(crate) platform: Arc<TestPlatform>,
}

/// What MOCK_DOMAIN gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mock {
    pub(crate) object: u32,
    pub(crate) hwpt: u32,
    pub(crate) device: u32,
}

/// Answers that a device has got.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<Vec<PageResponse>>);

impl PageResponder for Answers {
    fn respond(&self, response: PageResponse) {
        self.0.lock().unwrap().push(response);
    }
}

impl Answers {
    pub(crate) fn take(&self) -> Vec<PageResponse> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Lab {
    pub(crate) fn new() -> Lab {
        Lab::with(FaultCookies::Monotonic)
    }

    pub(crate) fn with(fault_cookies: FaultCookies) -> Lab {
        Lab::with_options(Options { selftest: true, fault_cookies, ..Options::default() })
    }

    pub(crate) fn with_options(options: Options) -> Lab {
        let platform = Arc::<TestPlatform>::default();
        let mut iommufd = Iommufd::new(Arc::clone(&platform) as _, options, Accounts::new(false));
        let (mut files, client) = (FileIds::default(), Client::new(1));
        client.memory.map(MEMORY, 16 << 20, true);
        let file = files.allocate();
        iommufd.open(file, false);
        let context = iommufd.context(file).unwrap();
        Lab { iommufd, files, client, file, context, platform }
    }

    /// A call with a structure, its size filled in; what is there afterwards,
    /// and the result.
    pub(crate) fn raw<T: Command>(&mut self, mut value: T) -> (T, Result<Reply, Errno>) {
        let size = size_of::<T>() as u32;
        value.as_mut_bytes()[..4].copy_from_slice(&size.to_ne_bytes());
        let at = self.client.put_bytes(value.as_bytes());
        let mut call = Call { caller: &self.client, files: &mut self.files };
        let result = self.iommufd.ioctl(self.file, T::REQUEST, at, &mut call);
        (self.client.get(at), result)
    }

    /// The same, where what is there afterwards counts only if it succeeds.
    pub(crate) fn call<T: Command>(&mut self, value: T) -> Result<T, Errno> {
        let (value, result) = self.raw(value);
        result.map(|_| value)
    }

    /// A TEST_CMD; `args` are u32s from offset 16 on.
    pub(crate) fn test(&mut self, op: u32, id: u32, args: &[u32]) -> Result<TestCmd, Errno> {
        let mut cmd = TestCmd { op, id, ..TestCmd::default() };
        for (n, arg) in args.iter().enumerate() {
            cmd.set_u32(16 + 4 * n, *arg);
        }
        self.call(cmd)
    }

    /// The same with u64s.
    pub(crate) fn test_wide(&mut self, op: u32, id: u32, args: &[u64]) -> Result<TestCmd, Errno> {
        let mut cmd = TestCmd { op, id, ..TestCmd::default() };
        cmd.args[..args.len()].copy_from_slice(args);
        self.call(cmd)
    }

    pub(crate) fn ioas(&mut self) -> u32 {
        self.call(abi::IoasAlloc::default()).unwrap().out_ioas_id
    }

    pub(crate) fn map(&mut self, ioas_id: u32, user_va: u64, length: u64, iova: u64) -> Result<(), Errno> {
        let cmd = abi::IoasMap { flags: 7, ioas_id, user_va, length, iova, ..abi::IoasMap::default() };
        self.call(cmd).map(|_| ())
    }

    pub(crate) fn destroy(&mut self, id: u32) -> Result<(), Errno> {
        self.call(abi::Destroy { id, ..abi::Destroy::default() }).map(|_| ())
    }

    pub(crate) fn mock(&mut self, pt: u32) -> Result<Mock, Errno> {
        self.mock_with(pt, 0)
    }

    pub(crate) fn mock_with(&mut self, pt: u32, flags: u32) -> Result<Mock, Errno> {
        let cmd = self.test(op::MOCK_DOMAIN_FLAGS, pt, &[0, 0, 0, flags])?;
        Ok(Mock { object: cmd.u32_at(16), hwpt: cmd.u32_at(20), device: cmd.u32_at(24) })
    }

    pub(crate) fn hwpt(&mut self, dev_id: u32, pt_id: u32, flags: u32) -> Result<u32, Errno> {
        let cmd = abi::HwptAlloc { dev_id, pt_id, flags, ..abi::HwptAlloc::default() };
        Ok(self.call(cmd)?.out_hwpt_id)
    }

    /// A HWPT with the mock's data.
    pub(crate) fn mock_hwpt(
        &mut self,
        dev_id: u32,
        pt_id: u32,
        flags: u32,
        fault_id: u32,
        data: &test::HwptData,
    ) -> Result<u32, Errno> {
        let data_uptr = self.client.put(data);
        let (data_type, data_len) = (test::HWPT_DATA, 8);
        let base = abi::HwptAlloc { dev_id, pt_id, flags, fault_id, ..abi::HwptAlloc::default() };
        Ok(self.call(abi::HwptAlloc { data_type, data_len, data_uptr, ..base })?.out_hwpt_id)
    }

    /// A fault queue: its id and file.
    pub(crate) fn fault_queue(&mut self) -> (u32, FileId) {
        let cmd = self.call(abi::FaultQueueAlloc::default()).unwrap();
        (cmd.out_fault_id, self.file_of(cmd.out_fault_fd))
    }

    pub(crate) fn file_of(&self, fd: u32) -> FileId {
        caller::Caller::file(&self.client, fd.cast_signed()).unwrap().unwrap()
    }

    pub(crate) fn read(&mut self, file: FileId, len: u64) -> Result<Vec<u8>, Errno> {
        let at = self.client.room(len.max(64));
        let done = self.iommufd.read(file, 0, at, len, &self.client)?;
        Ok(self.client.get_bytes(at, done as usize))
    }

    pub(crate) fn write(&mut self, file: FileId, bytes: &[u8]) -> Result<u64, Errno> {
        let at = self.client.put_bytes(bytes);
        self.iommufd.write(file, 0, at, bytes.len() as u64, &self.client)
    }

    pub(crate) fn is_readable(&self, file: FileId) -> bool {
        self.client.queues.borrow().get(&file).unwrap().is_readable()
    }

    /// Binds a device behind the lab's IOMMU.
    pub(crate) fn bind(&mut self, group: u64, properties: DeviceProperties) -> (ObjectId, Arc<Requester>) {
        let requester = Requester::new();
        let members = vec![Arc::clone(&requester)];
        let binding = Binding { group, requester: Arc::clone(&requester), members, properties };
        (self.iommufd.bind(self.context, binding).unwrap(), requester)
    }

    pub(crate) fn attach(&mut self, device: ObjectId, pasid: u32, pt: u32) -> Result<u32, Errno> {
        self.iommufd.attach(self.context, device, pasid, pt)
    }

    pub(crate) fn replace(&mut self, device: ObjectId, pasid: u32, pt: u32) -> Result<u32, Errno> {
        self.iommufd.replace(self.context, device, pasid, pt)
    }

    pub(crate) fn detach(&mut self, device: ObjectId, pasid: u32) {
        self.iommufd.detach(self.context, device, pasid);
    }

    /// What a PASID of a mock is attached to is this HWPT; 0 for none.
    pub(crate) fn check_pasid(&mut self, mock: Mock, pasid: u32, hwpt: u32) -> bool {
        self.test(op::PASID_CHECK_HWPT, mock.object, &[pasid, hwpt]).is_ok()
    }
}

pub(crate) const NEST_PARENT: u32 = 1;
pub(crate) const DIRTY_TRACKING: u32 = 2;
pub(crate) const FAULT_ID_VALID: u32 = 4;
pub(crate) const PASID: u32 = 8;

/// A device with everything.
pub(crate) fn able(answers: &Arc<Answers>) -> DeviceProperties {
    DeviceProperties {
        dirty_tracking: true,
        max_pasids: 1 << 20,
        responder: Some(Arc::clone(answers) as Arc<dyn PageResponder>),
        ..DeviceProperties::default()
    }
}
