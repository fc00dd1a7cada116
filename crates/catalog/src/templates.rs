//! Templates: frozen volumes that others are made of.

use uuid::Uuid;

use crate::api::{CopyTarget, Deploy, Source};
use crate::catalog::{Catalog, check_name};
use crate::env::Progress;
use crate::error::{CatalogError, Code, Result};
use crate::locks::Pace;
use crate::record::VolumeRecord;
use crate::txn::Plan;
use crate::volumes::one;

impl Catalog {
    /// Makes a template. Of a volume (`source.snapshot` None): the volume itself is frozen and takes
    /// the name, at once. Of a snapshot: a full copy, and the volume stays as it is.
    ///
    /// # Errors
    /// `bad-name`, `name-taken`, `volume-connected`, `not-clean`, `is-template`, `no-space`,
    /// `cancelled`, `busy`.
    pub async fn template_create(
        &self,
        source: Source,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<VolumeRecord> {
        if source.snapshot.is_some() {
            let target = CopyTarget { name: name.to_owned(), kind: None, template: true };
            return self.copy_full(source, target, progress).await;
        }
        check_name(name)?;
        let held = self.hold(&[source.volume], "freezing it as a template", Pace::Short).await?;
        let old = self.volume(source.volume)?;
        if old.template {
            let message = format!("{} is a template already", old.name);
            return Err(
                CatalogError::new(Code::IsTemplate, message).hint("rename it, or copy it in full")
            );
        }
        self.at_rest(&old, "freeze")?;
        let names = match old.name == name {
            true => None,
            false => Some(self.take_names(&[name.to_owned()])?),
        };
        let title = format!("make {} the template {name}", old.name);
        let put = VolumeRecord { name: name.to_owned(), template: true, schedule: None, ..old };
        let begun = self.begin(Plan { title, puts: vec![put], ..Plan::default() }).await?;
        let made = self.commit(begun).await?;
        drop((names, held));
        one(made)
    }

    /// Makes volumes of a template: linked ones all in one operation, full copies one by one.
    ///
    /// # Errors
    /// As [`Catalog::clone_linked`] and [`Catalog::copy_full`]; `bad-request` for a volume that is
    /// no template. Full copies made before a failure stay, and the error names them.
    pub async fn template_deploy(
        &self,
        template: Uuid,
        names: Vec<String>,
        how: Deploy,
        progress: &dyn Progress,
    ) -> Result<Vec<VolumeRecord>> {
        let record = self.volume(template)?;
        if !record.template {
            let message = format!("{} is a volume, not a template", record.name);
            return Err(
                CatalogError::new(Code::BadRequest, message).hint("clone or copy it instead")
            );
        }
        let source = Source { volume: template, snapshot: None };
        let kind = match how {
            Deploy::Linked => return self.clone_linked(source, names).await,
            Deploy::Full(kind) => kind,
        };
        for name in &names {
            check_name(name)?;
        }
        let mut made: Vec<VolumeRecord> = Vec::new();
        for name in names {
            let target = CopyTarget { name, kind, template: false };
            match self.copy_full(source, target, progress).await {
                Ok(volume) => made.push(volume),
                Err(error) if made.is_empty() => return Err(error),
                Err(error) => {
                    let there: Vec<&str> = made.iter().map(|v| v.name.as_str()).collect();
                    let doing = format!("{} were deployed before this failed", there.join(", "));
                    let related = made.iter().map(crate::api::named).collect();
                    return Err(error.during(doing).related(related));
                }
            }
        }
        Ok(made)
    }
}
