//! `shale token`.

use controller::client::Method;
use model::{CreateToken, CreatedToken, Problem};

use crate::grammar::Token;
use crate::output;
use crate::session::{Session, segment};

const ALL: &str = "/api/v1/tokens";

impl Session {
    pub(crate) async fn token(self, command: Token) -> Result<(), Problem> {
        match command {
            Token::Create { name, role } => {
                let body = CreateToken { name, role };
                let made: CreatedToken = self.client.call(Method::POST, ALL, Some(&body)).await?;
                // the secret alone, so that it can be put into a variable
                output::object(self.format, &made, || format!("{}\n", made.secret))
            }
            Token::List => output::list(self.format, &self.client.list::<model::Token>(ALL).await?),
            // a token is easily made again: nothing to ask
            Token::Revoke { name, consent: _ } => {
                let path = format!("{ALL}/{}", segment(&name));
                self.client.call::<(), ()>(Method::DELETE, &path, None).await?;
                match self.format {
                    crate::grammar::Format::Json | crate::grammar::Format::Yaml => Ok(()),
                    _ => output::print(&format!("token '{name}' is revoked\n")),
                }
            }
        }
    }
}
