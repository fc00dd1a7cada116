//! Formats of disk images that are imported and exported.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::object::words;

/// The format of what is imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImportFormat {
    /// Told by the file's own bytes; raw only if they are of no known format.
    #[default]
    Auto,
    /// The bytes of the disk.
    Raw,
    /// Microsoft's VHD: fixed, dynamic or differencing.
    Vhd,
    /// Microsoft's VHDX, read by QEMU.
    Vhdx,
    /// QEMU's qcow2, read by QEMU.
    Qcow2,
    /// VMware's VMDK in one file, read by QEMU.
    Vmdk,
    /// VirtualBox's VDI, read by QEMU.
    Vdi,
}
words!(ImportFormat {
    Auto = "auto",
    Raw = "raw",
    Vhd = "vhd",
    Vhdx = "vhdx",
    Qcow2 = "qcow2",
    Vmdk = "vmdk",
    Vdi = "vdi",
});

/// The format of what is exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// A dynamic VHD.
    #[default]
    Vhd,
    /// A fixed VHD.
    VhdFixed,
    /// The bytes of the disk, with holes where there are zeros.
    Raw,
    /// QEMU's qcow2, written by QEMU.
    Qcow2,
    /// VMware's VMDK in one file, written by QEMU.
    Vmdk,
    /// Microsoft's VHDX, written by QEMU.
    Vhdx,
    /// VirtualBox's VDI, written by QEMU.
    Vdi,
}
words!(ExportFormat {
    Vhd = "vhd",
    VhdFixed = "vhd-fixed",
    Raw = "raw",
    Qcow2 = "qcow2",
    Vmdk = "vmdk",
    Vhdx = "vhdx",
    Vdi = "vdi",
});
