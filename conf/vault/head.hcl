# What the lifecycle daemon on the head node may do: make, configure, read the metadata of, and delete the
# transit keys of jobs, and keep the grants. It can never use a key: no datakey, no encrypt or decrypt, no export, no backup.
# `secure-slurm vault init` replaces the words between @ signs.

# Only a key that cannot be exported or backed up can be made. A parameter that is not named here is refused.
path "@TRANSIT@/keys/+" {
  capabilities = ["create", "update", "read", "delete"]
  allowed_parameters = {
    "type"                   = ["aes256-gcm96"]
    "exportable"             = [false]
    "allow_plaintext_backup" = [false]
  }
}

# `exportable` and `allow_plaintext_backup` can be switched on later through this path: only deletion_allowed=true passes.
path "@TRANSIT@/keys/+/config" {
  capabilities = ["update"]
  allowed_parameters = {
    "deletion_allowed" = [true]
  }
}

# One grant per node and job. The mount demands check-and-set on every write.
path "@GRANTS@/data/+/+" {
  capabilities = ["create", "update", "read"]
}

# Deleting the metadata removes every version. Two lists, of nodes and of a node's jobs, find every key.
path "@GRANTS@/metadata/+/+" {
  capabilities = ["delete"]
}
path "@GRANTS@/metadata/" {
  capabilities = ["list"]
}
path "@GRANTS@/metadata/+/" {
  capabilities = ["list"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}
