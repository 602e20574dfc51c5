use argon2::{Algorithm, Argon2, AssociatedData, ParamsBuilder, Version};
use proptest::prelude::*;

use super::*;

/// Memory that holds what no hash may depend on.
fn used(params: &Params) -> Memory {
    let mut memory = Memory::reserve(params).unwrap();
    for block in memory.blocks() {
        block.0.fill(0x5555_aaaa_5555_aaaa);
    }
    memory
}

fn reference(params: &Params, input: &Input) -> [u8; OUTPUT] {
    let params = ParamsBuilder::new()
        .m_cost(params.memory_kib())
        .t_cost(params.iterations())
        .p_cost(params.parallelism())
        .output_len(OUTPUT)
        .data(AssociatedData::new(input.associated_data).unwrap())
        .build()
        .unwrap();
    let argon2 =
        Argon2::new_with_secret(input.secret, Algorithm::Argon2id, Version::V0x13, params).unwrap();
    let mut output = [0; OUTPUT];
    argon2
        .hash_password_into(input.password, input.salt, &mut output)
        .unwrap();
    output
}

#[test]
fn each_kernel_agrees_with_rfc_9106() {
    let (params, input, expected) = EXAMPLE;
    for kernel in Kernel::all() {
        assert!(agrees_with_rfc_9106(kernel).unwrap(), "{kernel}");
        let mut memory = used(&params);
        // Twice: memory that was used must not show.
        for _ in 0..2 {
            let output = hash_by(kernel, &params, &input, &mut memory);
            assert_eq!(output, Ok(expected), "{kernel}");
        }
    }
}

#[test]
fn each_kernel_agrees_with_another_implementation_at_full_size() {
    let input = Input {
        password: b"correct horse battery staple",
        salt: &[7; 16],
        ..Input::default()
    };
    for (memory, passes, lanes) in [(19456, 2, 1), (47104, 1, 1), (12289, 3, 4)] {
        let params = Params::new(memory, passes, lanes).unwrap();
        let expected = reference(&params, &input);
        for kernel in Kernel::all() {
            let output = hash_by(kernel, &params, &input, &mut used(&params)).unwrap();
            assert_eq!(output, expected, "{kernel} m={memory} t={passes} p={lanes}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn each_kernel_agrees_with_another_implementation(
        memory in 8_u32..3000,
        passes in 1_u32..5,
        lanes in 1_u32..9,
        password in proptest::collection::vec(any::<u8>(), 0..200),
        salt in proptest::collection::vec(any::<u8>(), 8..64),
        secret in proptest::collection::vec(any::<u8>(), 0..32),
        associated_data in proptest::collection::vec(any::<u8>(), 0..32),
    ) {
        let params = Params::new(memory.max(8 * lanes), passes, lanes).unwrap();
        let input = Input {
            password: &password,
            salt: &salt,
            secret: &secret,
            associated_data: &associated_data,
        };
        let expected = reference(&params, &input);
        for kernel in Kernel::all() {
            let output = hash_by(kernel, &params, &input, &mut used(&params)).unwrap();
            prop_assert_eq!(output, expected, "{}", kernel);
        }
    }
}

#[test]
fn only_parameters_of_the_rfc_exist() {
    for (memory, passes, lanes) in [
        (7, 1, 1),
        (8, 0, 1),
        (8, 1, 0),
        (15, 1, 2),
        (u32::MAX, 1, 1 << 24),
    ] {
        assert_eq!(Params::new(memory, passes, lanes), None);
    }
    for (memory, passes, lanes, blocks) in [(8, 1, 1, 8), (16, 1, 2, 16), (1027, 9, 3, 1020)] {
        let params = Params::new(memory, passes, lanes).unwrap();
        assert_eq!(params.blocks(), blocks);
    }
}

#[test]
fn less_memory_than_is_needed_is_refused_and_more_is_fine() {
    let small = Params::new(64, 1, 1).unwrap();
    let large = Params::new(65, 1, 1).unwrap();
    let larger = Params::new(68, 1, 1).unwrap();
    let input = Input {
        salt: &[0; 16],
        ..Input::default()
    };
    let mut memory = Memory::reserve(&small).unwrap();
    assert!(hash(&large, &input, &mut memory).is_ok());
    let refused = hash(&larger, &input, &mut memory).unwrap_err();
    let (needed, given) = (68, 64);
    assert_eq!(refused, Error::MemoryTooSmall { needed, given });

    let mut more = Memory::reserve(&larger).unwrap();
    assert_eq!(
        hash(&small, &input, &mut more),
        hash(&small, &input, &mut memory)
    );
}

#[test]
fn memory_is_where_huge_pages_are_and_can_be_wiped() {
    for kib in [8, 2047, 2048, 19456] {
        let params = Params::new(kib, 1, 1).unwrap();
        let mut memory = used(&params);
        assert_eq!(memory.blocks().len(), params.blocks());
        if kib >= 2048 {
            assert_eq!(memory.blocks().as_ptr().align_offset(2 << 20), 0);
        }
        assert!(!memory.is_blank());
        memory.wipe();
        assert!(memory.is_blank());
    }
}
