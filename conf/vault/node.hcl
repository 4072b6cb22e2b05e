# What a compute node may do: use the keys whose name begins with its own name and "_", and read its own grants.
# The node's name is the common name of its TLS certificate, the subject of its token, or a word of its entity. No node name may hold "_", so that no name is the beginning
# of another's. No list: a node cannot find out which jobs there are.
# `secure-slurm vault init` replaces the words between @ signs.

path "@TRANSIT@/datakey/plaintext/{{@NODE@}}_*" {
  capabilities = ["update"]
  allowed_parameters = {
    "bits" = []
  }
}

path "@TRANSIT@/decrypt/{{@NODE@}}_*" {
  capabilities = ["update"]
  allowed_parameters = {
    "ciphertext" = []
  }
}

path "@GRANTS@/data/{{@NODE@}}/+" {
  capabilities = ["read"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}

# The text of this policy, which "secure-slurm doctor" compares with the shipped one.
path "sys/policies/acl/@NODE_POLICY@" {
  capabilities = ["read"]
}
