
# Only with vault.node.method aws. To Vault a node is the instance's role with the instance's id; which node that is stands
# in one word of the entity that is made for it. The daemon can name nobody outside this mount, and give nobody a policy; it can
# change the metadata of any entity, so nothing else may rely on that in this Vault.
# anybody may log in; for Vault this is what makes the mount visible to the daemon, which must know its accessor
path "auth/@AWS@/login" {
  capabilities = ["update"]
}
path "identity/entity-alias" {
  capabilities = ["create", "update"]
  allowed_parameters = {
    "name"           = []
    "mount_accessor" = ["@AWS_ACCESSOR@"]
  }
}
path "identity/lookup/entity" {
  capabilities = ["update"]
  allowed_parameters = {
    "alias_name"           = []
    "alias_mount_accessor" = ["@AWS_ACCESSOR@"]
  }
}
path "identity/entity/id/+" {
  capabilities = ["update"]
  allowed_parameters = {
    "metadata" = []
  }
}
