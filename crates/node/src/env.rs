//! Clock, UUIDs and the boot's identity, as the catalog asks for them.

use uuid::Uuid;

use crate::events::now;

/// The real surroundings.
pub(crate) struct NodeEnv {
    boot: String,
}

impl NodeEnv {
    pub(crate) fn new(boot: Uuid) -> Self {
        Self { boot: boot.to_string() }
    }
}

impl catalog::Env for NodeEnv {
    fn now_ms(&self) -> u64 {
        now().unix_ms()
    }

    fn new_uuid(&self) -> Uuid {
        Uuid::new_v4()
    }

    fn boot_id(&self) -> String {
        self.boot.clone()
    }
}

/// The kernel's identity of this boot.
pub(crate) fn boot_id() -> std::io::Result<Uuid> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Uuid::parse_str(text.trim()).map_err(std::io::Error::other)
}

/// Bytes of memory that the host has; none where the kernel does not say.
pub(crate) fn memory_bytes() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|total| total.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// The host's name, for people.
pub(crate) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}
