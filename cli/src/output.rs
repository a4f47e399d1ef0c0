//! Where pictures go: names are decided here, before anything is sent; writing is in [`crate::files`].

use std::path::{Path, PathBuf};

use imagegen_proto::v1::ImageFormat;

/// Longest file name made from a prompt, in characters.
const NAME_CHARS: usize = 40;

/// Encoding of the pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Lossless.
    #[default]
    Png,
    /// Quality 90.
    #[value(alias = "jpg")]
    Jpeg,
    /// Lossless.
    Webp,
}

impl Format {
    /// Its name on the wire.
    #[must_use]
    pub const fn to_wire(self) -> ImageFormat {
        match self {
            Self::Png => ImageFormat::Png,
            Self::Jpeg => ImageFormat::Jpeg,
            Self::Webp => ImageFormat::Webp,
        }
    }

    const fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::Webp => "webp",
        }
    }

    fn of_extension(extension: &str) -> Option<Self> {
        match extension.to_ascii_lowercase().as_str() {
            "png" => Some(Self::Png),
            "jpg" | "jpeg" => Some(Self::Jpeg),
            "webp" => Some(Self::Webp),
            _ => None,
        }
    }
}

/// Why the output cannot be what was asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The extension names no known format and `--format` is absent.
    #[error(
        "{} does not say which format to write: use the extension .png, .jpg or .webp, or pass --format",
        .0.display()
    )]
    UnknownExtension(PathBuf),
    /// `-` or an empty path.
    #[error("-o needs the name of a file or of an existing folder, found \"{}\"", .0.display())]
    NotAFile(PathBuf),
}

/// The file of every picture, and their format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Image `i` of the request goes to `paths[i]`.
    pub paths: Vec<PathBuf>,
    /// What is asked of the worker.
    pub format: Format,
}

impl Plan {
    /// Names `count` files. `output` is a file, or a folder when `output_is_folder`; absent, the prompt names the file
    /// in the current folder. Several pictures of `apple.png` are `apple-1.png`, `apple-2.png` and so on.
    ///
    /// # Errors
    /// [`Error::UnknownExtension`] when neither extension nor `format` decides, [`Error::NotAFile`] for `-`.
    pub fn new(
        output: Option<&Path>,
        output_is_folder: bool,
        format: Option<Format>,
        prompt: &str,
        count: u32,
    ) -> Result<Self, Error> {
        let named_after_prompt = |folder: &Path| {
            let format = format.unwrap_or_default();
            (folder.join(format!("{}.{}", name_of(prompt), format.extension())), format)
        };
        let (first, format) = match output {
            None => named_after_prompt(Path::new("")),
            Some(folder) if output_is_folder => named_after_prompt(folder),
            Some(path) if path.as_os_str() == "-" || path.file_name().is_none() => {
                return Err(Error::NotAFile(path.to_owned()));
            }
            Some(path) => {
                let extension = path.extension().and_then(|extension| extension.to_str());
                let format = format.or_else(|| extension.map_or(Some(Format::Png), Format::of_extension));
                (path.to_owned(), format.ok_or_else(|| Error::UnknownExtension(path.to_owned()))?)
            }
        };
        let paths = match count {
            0 | 1 => vec![first],
            _ => (1..=count).map(|number| numbered(&first, number)).collect(),
        };
        Ok(Self { paths, format })
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{number}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// Letters and digits of the prompt, in any script, lower case, joined by hyphens.
fn name_of(prompt: &str) -> String {
    let mut name = String::new();
    for c in prompt.chars().flat_map(char::to_lowercase) {
        if c.is_alphanumeric() {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
        if name.chars().count() == NAME_CHARS {
            break;
        }
    }
    let name = name.trim_end_matches('-');
    if name.is_empty() { "image".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::as_named(Some("apple.png"), false, None, 1, &["apple.png"], Format::Png)]
    #[case::format_follows_extension(Some("out/apple.JPEG"), false, None, 1, &["out/apple.JPEG"], Format::Jpeg)]
    #[case::format_wins(Some("apple.png"), false, Some(Format::Webp), 1, &["apple.png"], Format::Webp)]
    #[case::no_extension(Some("apple"), false, None, 1, &["apple"], Format::Png)]
    #[case::several(Some("a.b/apple.webp"), false, None, 3, &["a.b/apple-1.webp", "a.b/apple-2.webp", "a.b/apple-3.webp"], Format::Webp)]
    #[case::several_without_extension(Some("apple"), false, None, 2, &["apple-1", "apple-2"], Format::Png)]
    #[case::folder(Some("pictures"), true, Some(Format::Jpeg), 1, &["pictures/a-red-apple.jpg"], Format::Jpeg)]
    #[case::from_the_prompt(None, false, None, 2, &["a-red-apple-1.png", "a-red-apple-2.png"], Format::Png)]
    fn names_follow_the_rules(
        #[case] output: Option<&str>,
        #[case] folder: bool,
        #[case] format: Option<Format>,
        #[case] count: u32,
        #[case] paths: &[&str],
        #[case] wanted: Format,
    ) {
        let plan = Plan::new(output.map(Path::new), folder, format, "A red  apple!", count).unwrap();
        assert_eq!(plan, Plan { paths: paths.iter().map(PathBuf::from).collect(), format: wanted });
    }

    #[rstest]
    #[case::unknown("apple.gif", Error::UnknownExtension("apple.gif".into()))]
    #[case::standard_output("-", Error::NotAFile("-".into()))]
    #[case::parent("..", Error::NotAFile("..".into()))]
    fn what_cannot_be_a_picture_is_refused(#[case] output: &str, #[case] error: Error) {
        assert_eq!(Plan::new(Some(Path::new(output)), false, None, "p", 1), Err(error));
    }

    #[rstest]
    #[case::chinese("红苹果", "红苹果")]
    #[case::path_like("../../etc/passwd", "etc-passwd")]
    #[case::nothing_left("!?", "image")]
    fn prompts_become_names(#[case] prompt: &str, #[case] name: &str) {
        assert_eq!(name_of(prompt), name);
    }

    proptest! {
        #[test]
        fn a_name_stays_in_its_folder_and_short(prompt in ".*") {
            let name = name_of(&prompt);
            prop_assert!(!name.is_empty() && name.chars().count() <= NAME_CHARS);
            prop_assert!(name.chars().all(|c| c.is_alphanumeric() || c == '-'));
        }

        #[test]
        fn every_picture_has_its_own_file(count in 1u32..50) {
            let plan = Plan::new(Some(Path::new("x/y.png")), false, None, "p", count).unwrap();
            let names: std::collections::HashSet<_> = plan.paths.iter().collect();
            prop_assert_eq!(names.len(), count as usize);
        }
    }
}
