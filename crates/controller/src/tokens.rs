//! Bearer tokens. A token reads `shale_ID_SECRET`: the id finds its document, the secret's SHA-256
//! is compared in constant time. Only the hash is kept.
//!
//! `DATA/admin.token` (mode 0600) is made at the first start and is the local administrator's.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use model::{Code, CreateToken, CreatedToken, Name, Problem, Role, Timestamp, Token, Uuid};
use rand::TryRngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::inventory::{Expected, Inventory, Write};
use crate::store::internal;

const PREFIX: &str = "token/";
const LOCAL: &str = "local-admin";

#[derive(Debug)]
pub(crate) struct Tokens {
    inventory: Arc<Inventory>,
}

/// Who makes a request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) token: Uuid,
    pub(crate) name: Name,
    pub(crate) role: Role,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    token: Token,
    sha256: String,
}

impl Tokens {
    pub(crate) fn new(inventory: Arc<Inventory>) -> Self {
        Self { inventory }
    }

    /// Makes `path` if it is missing, and makes sure that the token in it is known.
    pub(crate) async fn local_admin(&self, path: &Path, now: Timestamp) -> Result<(), Problem> {
        let failed = |e: std::io::Error| {
            Problem::new(
                Code::IoError,
                format!("The administrator's token {} cannot be used: {e}.", path.display()),
            )
        };
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let Some((id, secret)) = split(text.trim()) else {
                    return Err(Problem::new(
                        Code::Corrupt,
                        format!("{} does not hold a token.", path.display()),
                    )
                    .hint("delete the file and start again: a new one is made"));
                };
                if self.check(text.trim()).is_ok() {
                    return Ok(());
                }
                // the database was lost: whoever can read the file owns this directory
                let token = local(id, now)?;
                self.put(token, &secret).await
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                for (token, _) in self.stored().filter(|(t, _)| t.name.as_str() == LOCAL) {
                    self.drop_document(token.id).await?;
                }
                let (id, secret) = (Uuid::new_v4(), random()?);
                let token = local(id, now)?;
                self.put(token, &secret).await?;
                // 0600 from the first moment: never readable by others, not even empty
                let mut file = std::fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)
                    .map_err(failed)?;
                writeln!(file, "{}", join(id, &secret)).map_err(failed)?;
                file.sync_all().map_err(failed)
            }
            Err(e) => Err(failed(e)),
        }
    }

    /// Who this bearer token belongs to.
    pub(crate) fn check(&self, bearer: &str) -> Result<Caller, Problem> {
        let refused = || {
            Problem::new(Code::Unauthenticated, "The token is not known here.")
                .hint("give a valid one in SHALE_TOKEN or `Authorization: Bearer`; the local one is in DATA/admin.token")
        };
        let (id, secret) = split(bearer).ok_or_else(refused)?;
        let document = self.inventory.get(&format!("{PREFIX}{id}")).ok_or_else(refused)?;
        let stored: Stored = serde_json::from_value(document.body).map_err(internal)?;
        if !same(stored.sha256.as_bytes(), hash(&secret).as_bytes()) {
            return Err(refused());
        }
        Ok(Caller { token: id, name: stored.token.name, role: stored.token.role })
    }

    pub(crate) fn list(&self) -> Vec<Token> {
        self.stored().map(|(token, _)| token).collect()
    }

    pub(crate) async fn create(
        &self,
        request: CreateToken,
        now: Timestamp,
    ) -> Result<CreatedToken, Problem> {
        if self.stored().any(|(token, _)| token.name == request.name) {
            return Err(Problem::new(
                Code::NameTaken,
                format!("There is a token '{}' already.", request.name),
            )
            .hint("choose another name, or revoke that one first: shale token revoke NAME"));
        }
        let (id, secret) = (Uuid::new_v4(), random()?);
        let token = Token { id, name: request.name, role: request.role, created: now };
        self.put(token.clone(), &secret).await?;
        Ok(CreatedToken { token, secret: join(id, &secret) })
    }

    pub(crate) async fn revoke(&self, which: &model::Reference) -> Result<(), Problem> {
        let text = which.to_string();
        let (token, _) = self
            .stored()
            .find(|(t, _)| which.id() == Some(t.id) || t.name.as_str() == text)
            .ok_or_else(|| Problem::not_found("token", which))?;
        if token.name.as_str() == LOCAL {
            return Err(Problem::new(
                Code::Refused,
                "The local administrator's token cannot be revoked through the API.",
            )
            .hint("delete DATA/admin.token and start `shale serve` again: a new one is made"));
        }
        self.drop_document(token.id).await
    }

    fn stored(&self) -> impl Iterator<Item = (Token, String)> + use<> {
        self.inventory.with_prefix(PREFIX).into_iter().filter_map(|(_, document)| {
            let stored: Stored = serde_json::from_value(document.body).ok()?;
            Some((stored.token, stored.sha256))
        })
    }

    async fn put(&self, token: Token, secret: &str) -> Result<(), Problem> {
        let key = format!("{PREFIX}{}", token.id);
        let body =
            serde_json::to_value(Stored { token, sha256: hash(secret) }).map_err(internal)?;
        let write = Write { key, expected: Expected::Any, body: Some(body) };
        self.inventory.commit(vec![write]).await.map(drop)
    }

    async fn drop_document(&self, id: Uuid) -> Result<(), Problem> {
        let write = Write { key: format!("{PREFIX}{id}"), expected: Expected::Any, body: None };
        self.inventory.commit(vec![write]).await.map(drop)
    }
}

fn local(id: Uuid, created: Timestamp) -> Result<Token, Problem> {
    let name = Name::new(LOCAL).map_err(internal)?;
    Ok(Token { id, name, role: Role::Admin, created })
}

fn random() -> Result<String, Problem> {
    let mut bytes = [0_u8; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(internal)?;
    Ok(hex(&bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").ok();
        text
    })
}

fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

fn join(id: Uuid, secret: &str) -> String {
    format!("shale_{}_{secret}", id.simple())
}

fn split(bearer: &str) -> Option<(Uuid, String)> {
    let (id, secret) = bearer.strip_prefix("shale_")?.split_once('_')?;
    let plain = id.len() == 32 && secret.len() == 64;
    let id = Uuid::try_parse(id).ok().filter(|_| plain)?;
    Some((id, secret.to_owned()))
}

/// Compares without telling by its duration where the texts differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differ = a.iter().zip(b).fold(0_u8, |all, (a, b)| std::hint::black_box(all | (a ^ b)));
    a.len() == b.len() && differ == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_equal_texts_are_the_same() {
        assert!(same(b"abcd", b"abcd"));
        for other in [&b"abce"[..], b"bbcd", b"abc", b"abcde", b""] {
            assert!(!same(b"abcd", other), "{other:?}");
        }
    }

    #[test]
    fn a_token_splits_into_what_it_was_joined_from() {
        let (id, secret) = (Uuid::new_v4(), random().expect("random bytes"));
        assert_eq!(split(&join(id, &secret)), Some((id, secret)));
        for bad in ["", "shale_", "shale_x_y", "shale__", "Bearer x", "shale_0_0"] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
