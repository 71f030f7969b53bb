// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Identify (5.15).

use device::Io;
use zerocopy::{FromZeros, IntoBytes};

use super::Controller;
use super::config::Config;
use super::error::Error;
use super::events;
use super::features::{CRITICAL, KEEP_ALIVE_UNITS, WARNING};
use super::io::MDTS;
use super::logs::ERROR_ENTRIES;
use super::namespace::{Ids, Namespace, OUI, uuid_text};
use super::prp;
use super::spec::{
    self, Cns, Command, IdentifyController, IdentifyNamespace, LbaFormat, NidType, Status, controller, namespace,
    padded,
};

/// Bytes of every data structure.
const SIZE: usize = 4096;

/// Abort commands that may be outstanding, zero based.
const ABORT_LIMIT: u8 = 3;
/// One firmware slot, read only.
const FIRMWARE: u8 = 1 | 1 << 1;

impl Controller {
    pub(super) fn identify(&mut self, io: &mut Io<'_>, command: &Command) -> Result<(), Error> {
        let nsid = command.nsid.get();
        let cns = Cns::from_raw(command.cdw10.get() as u8).ok_or(Status::INVALID_FIELD)?;
        let from_controller = (command.cdw10.get() >> 16) as u16;
        let data = match cns {
            Cns::Namespace => self.namespace(nsid)?.identify(),
            Cns::Controller => identify_controller(&self.config, &self.namespaces),
            Cns::ActiveNamespaces => self.active_namespaces(nsid)?,
            Cns::NamespaceDescriptors => self.namespace(nsid)?.ids.descriptors(),
            // No fields beyond those of 1.4: no limits, no protection.
            Cns::CommandSetNamespace => {
                is_nvm_command_set(command)?;
                self.namespace(nsid)?;
                vec![0; SIZE]
            }
            Cns::CommandSetController => {
                is_nvm_command_set(command)?;
                vec![0; SIZE]
            }
            Cns::AttachedControllers => {
                self.namespace(nsid)?;
                self.controllers(from_controller)
            }
            Cns::Controllers => self.controllers(from_controller),
        };
        prp::send(&mut io.dma.session(), command, &data, self.page, &mut self.runs)
    }

    /// The ids above `after`, in order. There are no more than fit: see
    /// [`Controller::new`].
    fn active_namespaces(&self, after: u32) -> Result<Vec<u8>, Status> {
        if after >= spec::ALL_NAMESPACES - 1 {
            return Err(Status::INVALID_NAMESPACE);
        }
        let last = self.namespaces.len() as u32;
        let mut data: Vec<u8> = (after + 1..=last).take(SIZE / 4).flat_map(u32::to_le_bytes).collect();
        data.resize(SIZE, 0);
        Ok(data)
    }

    /// Controller ids from `from`: a count, and this one.
    fn controllers(&self, from: u16) -> Vec<u8> {
        let mut data = vec![0; SIZE];
        if self.config.controller_id >= from {
            data[0] = 1;
            data[2..4].copy_from_slice(&self.config.controller_id.to_le_bytes());
        }
        data
    }
}

/// The command set identifier in dword 11 must be NVM's.
fn is_nvm_command_set(command: &Command) -> Result<(), Status> {
    if command.cdw11.get() >> 24 == 0 { Ok(()) } else { Err(Status::INVALID_FIELD) }
}

fn identify_controller(config: &Config, namespaces: &[Namespace]) -> Vec<u8> {
    let mut id = IdentifyController::new_zeroed();
    id.vid = config.pci_id.0.into();
    id.ssvid = config.pci_id.0.into();
    id.sn = padded(&config.serial);
    id.mn = padded(&config.model_name);
    id.fr = padded(&config.firmware);
    id.ieee = OUI;
    id.ieee.reverse(); // Least significant byte first.
    id.rab = 5;
    id.mdts = MDTS;
    id.cntlid = config.controller_id.into();
    id.ver = spec::VERSION.into();
    id.oaes = controller::OAES_NAMESPACE.into();
    id.cntrltype = 1;
    id.oacs = controller::OACS_FORMAT.into();
    id.acl = ABORT_LIMIT;
    id.aerl = events::LIMIT as u8 - 1;
    id.frmw = FIRMWARE;
    id.lpa = controller::LPA_EFFECTS | controller::LPA_EXTENDED;
    id.elpe = (ERROR_ENTRIES - 1) as u8;
    id.wctemp = WARNING.into();
    id.cctemp = CRITICAL.into();
    let capacity: u128 = namespaces.iter().map(|namespace| u128::from(namespace.disk.len())).sum();
    id.tnvmcap = capacity.into();
    id.kas = KEEP_ALIVE_UNITS.into();
    id.sqes = 6 << 4 | 6;
    id.cqes = 4 << 4 | 4;
    id.nn = (namespaces.len() as u32).into();
    let oncs = controller::ONCS_COMPARE
        | controller::ONCS_DATASET
        | controller::ONCS_WRITE_ZEROES
        | controller::ONCS_SELECT
        | controller::ONCS_TIMESTAMP;
    id.oncs = oncs.into();
    id.vwc = controller::VWC_PRESENT | controller::VWC_FLUSH_ALL;
    let nqn = format!("nqn.2014-08.org.nvmexpress:uuid:{}", uuid_text(&Ids::new(&config.serial, 0).uuid));
    for (to, byte) in id.subnqn.iter_mut().zip(nqn.bytes()) {
        *to = byte;
    }
    id.psd[0].max_power = 2500.into();
    id.as_bytes().to_vec()
}

impl Namespace {
    fn identify(&self) -> Vec<u8> {
        let mut id = IdentifyNamespace::new_zeroed();
        id.nsze = self.blocks.into();
        id.ncap = self.blocks.into();
        id.nuse = self.blocks.into();
        id.fpi = namespace::FPI_IDLE;
        id.dlfeat = namespace::DLFEAT_ZEROES;
        id.nvmcap = (u128::from(self.blocks) << self.shift).into();
        if self.read_only {
            id.nsattr = namespace::NSATTR_WRITE_PROTECTED;
        }
        id.nguid = self.ids.nguid;
        id.eui64 = self.ids.eui64;
        id.lbaf[0] = LbaFormat { ms: 0.into(), lbads: self.shift, rp: 0 };
        id.as_bytes().to_vec()
    }
}

impl Ids {
    /// The identification descriptor list (5.15.2.4).
    fn descriptors(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(SIZE);
        let all: [(NidType, &[u8]); 3] =
            [(NidType::Eui64, &self.eui64), (NidType::Nguid, &self.nguid), (NidType::Uuid, &self.uuid)];
        for (kind, id) in all {
            data.extend([kind.raw(), id.len() as u8, 0, 0]);
            data.extend(id);
        }
        data.resize(SIZE, 0);
        data
    }
}
