// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mock devices: each in a group of its own, bound and attached as VFIO does it.

use std::any::Any;

use uapi::Errno;
use uapi::iommufd_test::{self as abi, TestCmd, op};
use zerocopy::IntoBytes;

use crate::context::Context;
use crate::device::DeviceProperties;
use crate::dispatch::Request;
use crate::ids::{Kind, ObjectId};
use crate::selftest::mock::Mock;
use crate::{Call, Iommufd};
use iommu::PageRequest;

/// A mock device, which lives as long as its object.
#[derive(Debug)]
pub(crate) struct MockDevice {
    pub(crate) device: ObjectId,
}

/// Mock devices' groups have numbers from here on.
const GROUPS: u64 = 1 << 63;

impl Iommufd {
    pub(super) fn test_mock_domain(
        &mut self,
        request: &Request,
        cmd: &mut TestCmd,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        let id = self.context_mut(request.context)?.ids.add(Kind::Selftest)?;
        let made = self.make_mock(request, cmd, id, call);
        if made.is_err() {
            self.context_mut(request.context)?.ids.remove(id);
        }
        made
    }

    fn make_mock(
        &mut self,
        request: &Request,
        cmd: &mut TestCmd,
        id: ObjectId,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        let flags = if cmd.op == op::MOCK_DOMAIN_FLAGS { cmd.u32_at(28) } else { 0 };
        if flags & !(abi::DEVICE_NO_DIRTY | abi::DEVICE_PASID) != 0 {
            return Err(Errno::EINVAL);
        }
        let properties = DeviceProperties {
            dirty_tracking: flags & abi::DEVICE_NO_DIRTY == 0,
            max_pasids: if flags & abi::DEVICE_PASID == 0 { 0 } else { 1 << abi::PASID_WIDTH },
            ..DeviceProperties::default()
        };
        self.mocks_made += 1;
        let driver = Box::new(Mock::new(properties.dirty_tracking));
        let device = self.bind_to(request.context, GROUPS | self.mocks_made, properties, driver, false)?;
        let result = self.attach(request.context, device, 0, cmd.id).and_then(|hwpt| {
            cmd.set_u32(16, id.0);
            cmd.set_u32(20, hwpt);
            cmd.set_u32(24, device.0);
            request.argument.respond(call.caller, cmd)
        });
        if let Err(error) = result {
            self.unbind(request.context, device);
            return Err(error);
        }
        self.context_mut(request.context)?.mocks.insert(id, MockDevice { device });
        Ok(())
    }

    pub(super) fn test_mock_domain_replace(
        &mut self,
        request: &Request,
        cmd: &mut TestCmd,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        let device = self.context_mut(request.context)?.mock_device(cmd.id)?;
        let hwpt = self.replace(request.context, device, 0, cmd.u32_at(16))?;
        cmd.set_u32(16, hwpt);
        request.argument.respond(call.caller, cmd)
    }

    pub(super) fn test_pasid_attach(
        &mut self,
        request: &Request,
        cmd: &mut TestCmd,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        let (pasid, pt) = (cmd.u32_at(16), cmd.u32_at(20));
        let device = self.context_mut(request.context)?.mock_device(cmd.id)?;
        let hwpt = self.attach(request.context, device, pasid, pt)?;
        cmd.set_u32(20, hwpt);
        let result = request.argument.respond(call.caller, cmd);
        result.inspect_err(|_| self.detach(request.context, device, pasid))
    }

    pub(super) fn test_pasid_replace(
        &mut self,
        request: &Request,
        cmd: &mut TestCmd,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        let (pasid, pt) = (cmd.u32_at(16), cmd.u32_at(20));
        let device = self.context_mut(request.context)?.mock_device(cmd.id)?;
        let hwpt = self.replace(request.context, device, pasid, pt)?;
        cmd.set_u32(20, hwpt);
        request.argument.respond(call.caller, cmd)
    }

    pub(super) fn test_pasid_detach(&mut self, request: &Request, cmd: &TestCmd) -> Result<(), Errno> {
        let device = self.context_mut(request.context)?.mock_device(cmd.id)?;
        self.detach(request.context, device, cmd.u32_at(16));
        Ok(())
    }

    pub(super) fn test_pasid_check_hwpt(&mut self, request: &Request, cmd: &TestCmd) -> Result<(), Errno> {
        let (pasid, hwpt) = (cmd.u32_at(16), ObjectId(cmd.u32_at(20)));
        let context = self.context_mut(request.context)?;
        let device = context.mock_device(cmd.id)?;
        let (_, group) = context.device_group(device)?;
        let attached = group.attached.get(&pasid).map(|attached| attached.hwpt);
        if hwpt.0 == 0 {
            return if attached.is_none() { Ok(()) } else { Err(Errno::EINVAL) };
        }
        match context.ids.kind(hwpt).ok_or(Errno::ENOENT)? {
            Kind::HwptPaging | Kind::HwptNested if attached == Some(hwpt) => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// One page request, which is complete. What becomes of it is not told.
    pub(super) fn test_trigger_iopf(&mut self, request: &Request, cmd: &TestCmd) -> Result<(), Errno> {
        let deadline = self.request_deadline();
        let context = self.context_mut(request.context)?;
        let device = context.ids.expect(cmd.u32_at(16), Kind::Device)?;
        context.mock(device)?;
        let pasid = cmd.u32_at(20);
        let request = PageRequest {
            pasid: (pasid != 0).then_some(pasid),
            group: cmd.u32_at(24),
            last: true,
            needs_pasid: false,
            perm: cmd.u32_at(28),
            addr: cmd.u64_at(32),
            private_data: None,
        };
        let _ = context.report(device, request, deadline);
        Ok(())
    }

    pub(super) fn test_check_cache(&mut self, request: &Request, cmd: &TestCmd) -> Result<(), Errno> {
        let context = self.context_mut(request.context)?;
        let device = context.ids.expect(cmd.id, Kind::Device)?;
        let word = context.mock(device)?.cache.get(cmd.u32_at(16) as usize);
        if word == Some(&cmd.u32_at(20)) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    pub(super) fn test_trigger_vevent(&mut self, request: &Request, cmd: &TestCmd) -> Result<(), Errno> {
        let context = self.context_mut(request.context)?;
        let device = context.ids.expect(cmd.u32_at(16), Kind::Device)?;
        let on = context.mock(device)?.viommu;
        let (viommu, number) = on.filter(|(_, number)| *number != 0).ok_or(Errno::ENOENT)?;
        context.report_vevent(viommu, abi::VEVENTQ, (number as u32).as_bytes())
    }
}

impl Context {
    /// A mock device goes with its object.
    pub(crate) fn destroy_mock(&mut self, id: ObjectId) {
        if let Some(MockDevice { device }) = self.mocks.remove(&id) {
            self.remove_device(device);
        }
        self.ids.remove(id);
    }

    /// The device of a mock: `ENOENT`.
    fn mock_device(&self, id: u32) -> Result<ObjectId, Errno> {
        let id = self.ids.expect(id, Kind::Selftest)?;
        Ok(self.mocks.get(&id).ok_or(Errno::ENOENT)?.device)
    }

    /// What the mock IOMMU knows of a device: `EINVAL` if it is behind another.
    pub(super) fn mock(&self, device: ObjectId) -> Result<&Mock, Errno> {
        (self.driver(device)? as &dyn Any).downcast_ref().ok_or(Errno::EINVAL)
    }
}
