# What the lifecycle daemon on the head node may do: make, configure, read the metadata of, and delete the
# transit keys of jobs, and keep the grants. It can never use a job's key: no datakey, no encrypt or decrypt, no export, no backup.
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

# `exportable` and `allow_plaintext_backup` can be switched on later through this path: only deletion_allowed=true passes,
# and which versions may decrypt: with a newer version that locks the key of a job that is frozen, and unlocks it.
path "@TRANSIT@/keys/+/config" {
  capabilities = ["update"]
  allowed_parameters = {
    "deletion_allowed"       = [true]
    "min_decryption_version" = ["1", "2"]
  }
}
path "@TRANSIT@/keys/+/rotate" {
  capabilities      = ["update"]
  denied_parameters = {
    "*" = []
  }
}

# The key that signs certificates of destruction: vault init makes it. An exact path counts for more than one with "+", so
# the daemon can sign and read the public key, and can neither make nor configure, rotate or delete it.
path "@TRANSIT@/sign/@CERTIFICATES@" {
  capabilities = ["update"]
  allowed_parameters = {
    "input" = []
  }
}
path "@TRANSIT@/keys/@CERTIFICATES@" {
  capabilities = ["read"]
}
path "@TRANSIT@/keys/@CERTIFICATES@/config" {
  capabilities = ["deny"]
}
path "@TRANSIT@/keys/@CERTIFICATES@/rotate" {
  capabilities = ["deny"]
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

# What the enrolment daemon remembers, in the same mount: which instance a node is, and nothing to be changed here.
path "@GRANTS@/data/_nodes/+" {
  capabilities = ["read"]
}
path "@GRANTS@/data/_instances/+" {
  capabilities = ["deny"]
}
path "@GRANTS@/data/_revoked/+" {
  capabilities = ["deny"]
}
path "@GRANTS@/metadata/_nodes/+" {
  capabilities = ["deny"]
}
path "@GRANTS@/metadata/_instances/+" {
  capabilities = ["deny"]
}
path "@GRANTS@/metadata/_revoked/+" {
  capabilities = ["deny"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}

# The text of both policies, which "secure-slurm doctor" compares with the shipped ones.
path "sys/policies/acl/@HEAD_POLICY@" {
  capabilities = ["read"]
}
path "sys/policies/acl/@NODE_POLICY@" {
  capabilities = ["read"]
}
