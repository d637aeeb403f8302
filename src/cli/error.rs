//! How a command ends badly: an exit code and one line that names the thing and the remedy.

/// A failed command.
#[derive(Debug)]
pub struct CliError {
    /// 1 failed, 2 usage, 3 found damage.
    pub code: u8,
    /// One line; empty when it was said already.
    pub message: String,
}

impl CliError {
    /// It could not be done.
    pub fn failed(message: impl ToString) -> Self {
        Self { code: 1, message: one_line(&message.to_string()) }
    }

    /// It was asked for in a wrong way.
    pub fn usage(message: impl ToString) -> Self {
        Self { code: 2, message: one_line(&message.to_string()) }
    }

    /// It was done, and damage was found.
    pub fn damage(message: impl ToString) -> Self {
        Self { code: 3, message: one_line(&message.to_string()) }
    }
}

fn one_line(text: &str) -> String {
    text.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ")
}

macro_rules! failed_from {
    ($($t:ty),*) => {$(
        impl From<$t> for CliError {
            fn from(e: $t) -> Self {
                Self::failed(e)
            }
        }
    )*};
}
failed_from!(
    crate::local::DataDirError,
    crate::store::StoreError,
    crate::store::IdentityError,
    crate::cache::CacheError,
    crate::fuse::MountError
);
