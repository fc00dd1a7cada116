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

/// The host's name, for people.
pub(crate) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}
