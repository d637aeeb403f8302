//! The `everlog` command.

fn main() -> std::process::ExitCode {
    everlog::cli::main()
}
