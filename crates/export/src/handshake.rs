//! The fixed newstyle handshake as a state machine without I/O.
//!
//! ```text
//! server: greeting ─► client: flags ─► { client: option ─► server: replies }*
//!                                          ├─ GO, EXPORT_NAME ─► transmission (Session)
//!                                          └─ ABORT           ─► close
//! ```
//! Input is hostile: every length is bounded before anything is kept, an option that is too long is
//! skipped unread. One call of [`Handshake::advance`] handles one message, so that what a client
//! makes us say is sent (and its slowness felt) before its next message is looked at.

use crate::context::{Context, Contexts};
use crate::fields::{Fields, text};
use crate::wire::{
    FIXED_NEWSTYLE, Framing, GREETING_MAGIC, MAX_OPTION, MAX_PAYLOAD, MAX_STRING, NO_ZEROES,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, export_flag, info, option, option_reply as rep,
};

/// Most options a client may send: many exports can be asked about, but not for ever.
const MAX_OPTIONS: u32 = 4096;
/// Bytes of an option before its data.
const OPTION_HEADER: usize = 16;

/// What a client is told about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The name it is served under.
    pub name: String,
    /// Free text for people.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Smallest unit of a request.
    pub min_block: u32,
    /// Unit that is fast to write.
    pub preferred_block: u32,
}

/// The exports that exist now.
pub trait Offers {
    /// The export that a client names; the empty name means the default export.
    fn find(&self, name: &str) -> Option<Offer>;
    /// All exports that may be listed, in order.
    fn all(&self) -> Vec<Offer>;
}

/// What was agreed for the transmission phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Name of the export, as it is known to the server.
    pub export: String,
    /// How requests and replies are laid out.
    pub framing: Framing,
    /// What block status tells.
    pub contexts: Contexts,
}

/// What one call of [`Handshake::advance`] came to. `used` bytes of the input are done with.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The next message is not complete yet.
    More,
    /// A message was handled; its replies are in the output.
    Handled {
        /// Bytes of input.
        used: usize,
    },
    /// The output ends the handshake; requests follow.
    Start {
        /// Bytes of input.
        used: usize,
        /// What was agreed.
        session: Session,
    },
    /// The client asked to end.
    End,
}

/// The client broke the protocol in a way that leaves nothing to say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Flags that are not defined.
    #[error("client flags {0:#x} are not defined")]
    ClientFlags(u32),
    /// No option where one must start.
    #[error("an option starts with {0:#018x} instead of IHAVEOPT")]
    OptionMagic(u64),
    /// EXPORT_NAME has no way to say no.
    #[error("there is no export {0:?}")]
    UnknownExport(String),
    /// The name of EXPORT_NAME is no name.
    #[error("the export name is longer than {MAX_STRING} bytes or no text")]
    BadName,
    /// EXPORT_NAME has no place for what extended headers promise.
    #[error("EXPORT_NAME after extended headers were agreed on")]
    OldWayIn,
    /// Too many options.
    #[error("more than {MAX_OPTIONS} options")]
    TooManyOptions,
}

/// The handshake of one connection.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    no_zeroes: bool,
    framing: Framing,
    /// What was selected, and for which export.
    contexts: Option<(String, Contexts)>,
    options: u32,
}

#[derive(Debug)]
enum State {
    ClientFlags,
    Option,
    /// Data of an option that was refused for its length.
    Skip(usize),
}

impl Handshake {
    /// Starts; the greeting goes to `out`.
    pub fn start(out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&GREETING_MAGIC.to_be_bytes());
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
        Self {
            state: State::ClientFlags,
            no_zeroes: false,
            framing: Framing::Simple,
            contexts: None,
            options: 0,
        }
    }

    /// Longest message that must be held whole: what a caller's input buffer has to take.
    #[must_use]
    pub const fn longest_message() -> usize {
        OPTION_HEADER + MAX_OPTION
    }

    /// Handles the next message of `input`, if it is whole.
    pub fn advance(
        &mut self,
        input: &[u8],
        offers: &dyn Offers,
        out: &mut Vec<u8>,
    ) -> Result<Step, HandshakeError> {
        match self.state {
            State::ClientFlags => {
                let Some(flags) = Fields(input).u32() else { return Ok(Step::More) };
                if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
                    return Err(HandshakeError::ClientFlags(flags));
                }
                self.no_zeroes = flags & u32::from(NO_ZEROES) != 0;
                self.state = State::Option;
                Ok(Step::Handled { used: 4 })
            }
            State::Skip(left) => {
                let used = left.min(input.len());
                if used == 0 {
                    return Ok(Step::More);
                }
                self.state = if used == left { State::Option } else { State::Skip(left - used) };
                Ok(Step::Handled { used })
            }
            State::Option => self.option(input, offers, out),
        }
    }

    fn option(
        &mut self,
        input: &[u8],
        offers: &dyn Offers,
        out: &mut Vec<u8>,
    ) -> Result<Step, HandshakeError> {
        let mut fields = Fields(input);
        // a wrong magic is said at its eighth byte, not after a header that may never come
        let Some(magic) = fields.u64() else { return Ok(Step::More) };
        if magic != OPTION_MAGIC {
            return Err(HandshakeError::OptionMagic(magic));
        }
        let (Some(kind), Some(len)) = (fields.u32(), fields.u32()) else { return Ok(Step::More) };
        let len = len as usize;
        if len > MAX_OPTION {
            self.count()?;
            if kind == option::EXPORT_NAME {
                return Err(HandshakeError::BadName);
            }
            reply_error(out, kind, rep::ERR_TOO_BIG, "the option's data is too long");
            self.state = State::Skip(len);
            return Ok(Step::Handled { used: OPTION_HEADER });
        }
        let Some(data) = fields.take(len) else { return Ok(Step::More) };
        self.count()?;
        let used = OPTION_HEADER + len;
        match kind {
            option::EXPORT_NAME => self.export_name(used, data, offers, out),
            option::ABORT => {
                reply(out, kind, rep::ACK, &[]);
                Ok(Step::End)
            }
            option::INFO | option::GO => match parse_info(data) {
                None => {
                    reply_error(out, kind, rep::ERR_INVALID, "malformed request");
                    Ok(Step::Handled { used })
                }
                Some((name, wanted)) => match offers.find(name) {
                    None => {
                        reply_error(out, kind, rep::ERR_UNKNOWN, "there is no such export");
                        Ok(Step::Handled { used })
                    }
                    Some(offer) => {
                        self.reply_info(out, kind, &offer, &wanted);
                        Ok(if kind == option::GO {
                            Step::Start { used, session: self.session(offer.name) }
                        } else {
                            Step::Handled { used }
                        })
                    }
                },
            },
            option::LIST if data.is_empty() => {
                for offer in offers.all() {
                    reply_server(out, kind, &offer);
                }
                reply(out, kind, rep::ACK, &[]);
                Ok(Step::Handled { used })
            }
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS if data.is_empty() => {
                self.frame(kind, out);
                Ok(Step::Handled { used })
            }
            option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => {
                reply_error(out, kind, rep::ERR_INVALID, "this option takes no data");
                Ok(Step::Handled { used })
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(kind, data, offers, out);
                Ok(Step::Handled { used })
            }
            _ => {
                reply_error(out, kind, rep::ERR_UNSUP, "this option is not served");
                Ok(Step::Handled { used })
            }
        }
    }

    fn count(&mut self) -> Result<(), HandshakeError> {
        self.options += 1;
        if self.options > MAX_OPTIONS { Err(HandshakeError::TooManyOptions) } else { Ok(()) }
    }

    /// Extended headers include what structured replies bring, and there is no way back.
    fn frame(&mut self, kind: u32, out: &mut Vec<u8>) {
        self.framing = match (kind == option::EXTENDED_HEADERS, self.framing) {
            (true, Framing::Extended) => {
                let why = "extended headers were agreed on already";
                return reply_error(out, kind, rep::ERR_INVALID, why);
            }
            (false, Framing::Extended) => {
                let why = "extended headers were agreed on, and replies come in chunks";
                return reply_error(out, kind, rep::ERR_EXT_HEADER_REQD, why);
            }
            (true, Framing::Simple | Framing::Structured) => Framing::Extended,
            (false, Framing::Simple | Framing::Structured) => Framing::Structured,
        };
        reply(out, kind, rep::ACK, &[]);
    }

    fn session(&self, export: String) -> Session {
        let contexts = self.contexts_of(&export);
        Session { export, framing: self.framing, contexts }
    }

    fn contexts_of(&self, export: &str) -> Contexts {
        let selected = self.contexts.as_ref().filter(|(name, _)| name == export);
        selected.map_or(Contexts::NONE, |(_, contexts)| *contexts)
    }

    fn export_name(
        &self,
        used: usize,
        data: &[u8],
        offers: &dyn Offers,
        out: &mut Vec<u8>,
    ) -> Result<Step, HandshakeError> {
        if self.framing == Framing::Extended {
            return Err(HandshakeError::OldWayIn);
        }
        let name = text(data).ok_or(HandshakeError::BadName)?;
        let offer =
            offers.find(name).ok_or_else(|| HandshakeError::UnknownExport(name.to_owned()))?;
        out.extend_from_slice(&offer.size.to_be_bytes());
        out.extend_from_slice(&self.flags(&offer, option::EXPORT_NAME).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(Step::Start { used, session: self.session(offer.name) })
    }

    /// What an export serves, as far as the agreed messages can say it: DF where reads come in
    /// chunks; block status of chosen contexts where requests have payloads and there are contexts to
    /// choose from. INFO tells what could be agreed on.
    fn flags(&self, offer: &Offer, kind: u32) -> u16 {
        let mut flags = offer.flags;
        if self.framing.has_chunks() {
            flags |= export_flag::SEND_DF;
        }
        let selected = kind == option::INFO || !self.contexts_of(&offer.name).is_empty();
        if self.framing == Framing::Extended && selected {
            flags |= export_flag::BLOCK_STATUS_PAYLOAD;
        }
        flags
    }

    fn reply_info(&self, out: &mut Vec<u8>, kind: u32, offer: &Offer, wanted: &[u16]) {
        let mut data = info::EXPORT.to_be_bytes().to_vec();
        data.extend_from_slice(&offer.size.to_be_bytes());
        data.extend_from_slice(&self.flags(offer, kind).to_be_bytes());
        reply(out, kind, rep::INFO, &data);
        // said also unasked: a client that ignores it gets EINVAL for odd requests, not a surprise
        let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [offer.min_block, offer.preferred_block, MAX_PAYLOAD] {
            data.extend_from_slice(&size.to_be_bytes());
        }
        reply(out, kind, rep::INFO, &data);
        for (id, text) in [(info::NAME, &offer.name), (info::DESCRIPTION, &offer.description)] {
            if wanted.contains(&id) {
                let mut data = id.to_be_bytes().to_vec();
                data.extend_from_slice(text.as_bytes());
                reply(out, kind, rep::INFO, &data);
            }
        }
        reply(out, kind, rep::ACK, &[]);
    }

    fn meta_context(&mut self, kind: u32, data: &[u8], offers: &dyn Offers, out: &mut Vec<u8>) {
        let setting = kind == option::SET_META_CONTEXT;
        if setting {
            // whatever comes of it, what was selected before is no longer
            self.contexts = None;
            if !self.framing.has_chunks() {
                let why = "structured replies or extended headers must be negotiated first";
                return reply_error(out, kind, rep::ERR_INVALID, why);
            }
        }
        let Some((name, queries)) = parse_queries(data) else {
            return reply_error(out, kind, rep::ERR_INVALID, "malformed request");
        };
        let Some(offer) = offers.find(name) else {
            return reply_error(out, kind, rep::ERR_UNKNOWN, "there is no such export");
        };
        let mut selected = Contexts::NONE;
        for context in Context::ALL {
            // a list may be asked for by namespace; what is selected is named in full
            let listed =
                |query: &&str| !setting && (query.is_empty() || *query == context.namespace());
            let all = !setting && queries.is_empty();
            if all || queries.iter().any(|query| *query == context.name() || listed(query)) {
                let id = if setting { context.id() } else { 0 };
                let data = [&id.to_be_bytes()[..], context.name().as_bytes()].concat();
                reply(out, kind, rep::META_CONTEXT, &data);
                selected = selected.with(context);
            }
        }
        if setting {
            self.contexts = Some((offer.name, selected));
        }
        reply(out, kind, rep::ACK, &[]);
    }
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    let len = u32::try_from(data.len()).expect("replies are made here and short");
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(data);
}

fn reply_error(out: &mut Vec<u8>, option: u32, kind: u32, text: &str) {
    reply(out, option, kind, text.as_bytes());
}

fn reply_server(out: &mut Vec<u8>, option: u32, offer: &Offer) {
    let name_len = u32::try_from(offer.name.len()).expect("names are bounded when exported");
    let mut data = name_len.to_be_bytes().to_vec();
    data.extend_from_slice(offer.name.as_bytes());
    data.extend_from_slice(offer.description.as_bytes());
    reply(out, option, rep::SERVER, &data);
}

/// `{u32 length, name, u16 count, u16 kind...}`, nothing more and nothing less.
fn parse_info(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let wanted = (0..count).map(|_| fields.u16()).collect::<Option<Vec<_>>>()?;
    fields.is_empty().then_some((name, wanted))
}

/// `{u32 length, name, u32 count, {u32 length, query}...}`.
fn parse_queries(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    // each query takes four bytes of the option at least: the count cannot make us collect more
    let queries = (0..count).map(|_| fields.string()).collect::<Option<Vec<_>>>()?;
    fields.is_empty().then_some((name, queries))
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
