//! The macro that mirrors a struct of a header.

/// Defines a struct as C lays it out, with its size and the offset of each field.
macro_rules! mirror {
    ($(#[$doc:meta])* $name:ident, $bytes:literal bytes {
        $($(#[$field_doc:meta])* $offset:literal $field:ident: $type:ty,)*
    }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        const _: () = {
            assert!(size_of::<$name>() == $bytes);
            $(assert!(std::mem::offset_of!($name, $field) == $offset);)*
        };

        #[cfg(test)]
        impl $name {
            /// Struct, field and offset of all fields, and the size as field "".
            pub(super) const LAYOUT: &[(&str, &str, usize)] = &[
                $((stringify!($name), stringify!($field), $offset),)*
                (stringify!($name), "", $bytes),
            ];
        }
    };
}
